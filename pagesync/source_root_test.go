//go:build root

package pagesync

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

var (
	seedFlag = flag.Int64("seed", 0, "seed of the random tests (default: by the time)")
	rounds   = flag.Int("rounds", 12, "rounds of the random tests")
)

// requireAnonymous checks with the kernel's own list that all that CRIU is to
// leave out may be left out.
func requireAnonymous(t *testing.T, left []Left) {
	t.Helper()
	for _, l := range left {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", l.PID))
		must(t, err)
		ok := false
		for line := range strings.Lines(string(b)) {
			m, parsed := parseMapping([]byte(strings.TrimSpace(line)))
			ok = ok || parsed && m.anonymous() && m.start <= l.Start && l.End <= m.end
		}
		if !ok {
			t.Errorf("%d: %#x-%#x is to be left out, in\n%s", l.PID, l.Start, l.End, b)
		}
	}
}

// TestMutation moves the memory of processes that change it at random, with a
// random number of passes, and compares every byte.
func TestMutation(t *testing.T) {
	seed := *seedFlag
	if seed == 0 {
		seed = time.Now().UnixNano()
	}
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(uint64(seed), 0))
	var total int64
	for round := range *rounds {
		func() {
			init := startPod(t, fmt.Sprint(random.Uint32()), fmt.Sprint(random.IntN(5)))
			s := newSession(t, init)
			defer s.source.Close()
			s.connect(false)
			for range random.IntN(6) {
				_, err := s.source.Pass(t.Context())
				must(t, err)
			}
			if random.IntN(3) == 0 {
				_, err := s.source.Survey(t.Context())
				must(t, err)
			}
			stop(t, init)
			left, err := s.source.Freeze(t.Context())
			must(t, err)
			requireAnonymous(t, left)
			stats, err := s.source.Finish(t.Context())
			must(t, err)
			must(t, <-s.ended)
			n := s.requireSame(left)
			total += n
			t.Logf("round %d: %d KiB in %d ranges, same %d KiB, changed %d KiB", round, n>>10, len(left), stats.Same>>10, stats.Changed>>10)
			if !s.source.Settled() || s.source.Progress() != 0 {
				t.Errorf("settled %v, %d bytes remain", s.source.Settled(), s.source.Progress())
			}
		}()
	}
	if total == 0 {
		t.Error("nothing was carried at all")
	}
}

// TestLostAfterFreeze breaks the connection again and again while the rest is
// sent, with faults in between; the last rounds are a Source that was reopened.
func TestLostAfterFreeze(t *testing.T) {
	for _, reopen := range []bool{false, true} {
		init := startPod(t, "3", "3")
		s := newSession(t, init)
		s.connect(false)
		for range 2 {
			_, err := s.source.Pass(t.Context())
			must(t, err)
		}
		stop(t, init)
		s.breakAfter = 40
		left, err := s.source.Freeze(t.Context())
		must(t, err)
		regions := s.source.regionList()
		finished := make(chan error, 1)
		go func() {
			_, err := s.source.Finish(t.Context())
			finished <- err
		}()
		err = <-s.ended
		if reopen {
			must(t, s.source.Close())
			if err := <-finished; !errors.Is(err, ErrClosed) {
				t.Errorf("Finish of a closed source: %v", err)
			}
			s.source, err = Reopen(SourceOptions{Init: init, Log: slog.New(slog.DiscardHandler)}, regions...)
			must(t, err)
			go func() {
				_, err := s.source.Finish(t.Context())
				finished <- err
			}()
			err = io.ErrClosedPipe
		}
		connections := 1
		for ; errors.Is(err, io.ErrClosedPipe); connections++ {
			s.breakAfter += 40
			fault := regions[connections%len(regions)]
			fault.End = fault.Start + PageSize
			s.connect(true, fault)
			err = <-s.ended
		}
		must(t, err)
		must(t, <-finished)
		s.requireSame(left)
		if connections < 3 {
			t.Errorf("there were only %d connections", connections)
		}
		must(t, s.source.Close())
	}
}

// TestLostBeforeFreeze: what the target has is not known any more.
func TestLostBeforeFreeze(t *testing.T) {
	init := startPod(t, "5", "0")
	s := newSession(t, init)
	ours, theirs := connection(t)
	go func() { s.serve <- s.source.Serve(ours) }()
	w := NewWriter(theirs)
	must(t, w.Write(Frame{Kind: KindHello}))
	must(t, w.Flush())
	must(t, s.source.Connected(t.Context()))
	go func() {
		r := NewReader(theirs)
		for f, err := r.Next(); err == nil; f, err = r.Next() {
			if f.Kind == KindMark {
				theirs.Close()
			}
		}
	}()
	if _, err := s.source.Pass(t.Context()); !errors.Is(err, ErrLost) {
		t.Errorf("Pass: %v", err)
	}
	<-s.serve
	if _, err := s.source.Pass(t.Context()); !errors.Is(err, ErrLost) {
		t.Errorf("Pass again: %v", err)
	}
	if _, err := s.source.Freeze(t.Context()); !errors.Is(err, ErrLost) {
		t.Errorf("Freeze: %v", err)
	}
	ours, theirs = connection(t)
	defer theirs.Close()
	go func() { s.serve <- s.source.Serve(ours) }()
	w = NewWriter(theirs)
	must(t, w.Write(Frame{Kind: KindHello, Flags: FlagAgain}))
	must(t, w.Flush())
	if err := <-s.serve; !errors.Is(err, ErrLost) {
		t.Errorf("Serve: %v", err)
	}
}
