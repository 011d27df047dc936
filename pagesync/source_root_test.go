//go:build root

package pagesync

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/procfs"
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
			m, parsed := procfs.ParseMapping([]byte(strings.TrimSpace(line)))
			ok = ok || parsed && (mapping{m}).anonymous() && m.Start <= l.Start && l.End <= m.End
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
			if random.IntN(2) == 0 {
				until := make(chan struct{})
				s.source.Yield(until)
				time.AfterFunc(time.Duration(random.IntN(20))*time.Millisecond, func() { close(until) })
			}
			stats, err := s.source.Finish(t.Context())
			must(t, err)
			must(t, <-s.ended)
			n := s.requireSame(left)
			total += n
			t.Logf("round %d: %d KiB in %d ranges, same %d KiB, changed %d KiB", round, n>>10, len(left), stats.Same>>10, stats.Changed>>10)
			if !isClosed(s.source.settled) {
				t.Error("the pager has not got everything")
			}
		}()
	}
	if total == 0 {
		t.Error("nothing was carried at all")
	}
}

// TestSlowLink: what can be compressed is, over a slow link, and comes out as it
// was.
func TestSlowLink(t *testing.T) {
	init := startPod(t, "many", "2", "300", "2")
	s := newSession(t, init)
	s.rate = 5 << 20
	s.connect(false)
	stats, err := s.source.Pass(t.Context())
	must(t, err)
	if stats.Sent > stats.Scanned*2/3 {
		t.Errorf("%d bytes were sent of %d", stats.Sent, stats.Scanned)
	}
	s.finish(t, init)
}

// finish freezes the pod and sends the rest, and then all must have crossed.
func (s *session) finish(t *testing.T, init int) {
	t.Helper()
	stop(t, init)
	left, err := s.source.Freeze(t.Context())
	must(t, err)
	_, err = s.source.Finish(t.Context())
	must(t, err)
	must(t, <-s.ended)
	s.requireSame(left)
}

// TestCancel: a pass that nobody waits for any more ends, and the next one sends
// the rest.
func TestCancel(t *testing.T) {
	init := startPod(t, "fill", "32", "10")
	s := newSession(t, init)
	s.rate = 20 << 20
	s.connect(false)
	ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, io.ErrNoProgress)
	defer cancel()
	first, err := s.source.Pass(ctx)
	if !errors.Is(err, io.ErrNoProgress) {
		t.Errorf("Pass: %+v, %v", first, err)
	}
	second, err := s.source.Pass(t.Context())
	must(t, err)
	if first.Sent == 0 || second.Scanned < 32<<20 || second.Changed >= second.Scanned {
		t.Errorf("first %+v, then %+v", first, second)
	}
	s.finish(t, init)
}

// TestClose ends a pass and a Finish that wait for the pager.
func TestClose(t *testing.T) {
	init := startPod(t, "fill", "1", "0")
	for _, freeze := range []bool{false, true} {
		source, err := NewSource(SourceOptions{Init: init, Log: slog.New(slog.DiscardHandler)})
		must(t, err)
		ours, theirs := connection(t)
		defer theirs.Close()
		served := make(chan error, 1)
		go func() { served <- source.Serve(ours) }()
		w, r := NewWriter(theirs), NewReader(theirs)
		must(t, w.Write(Frame{Kind: KindHello}))
		must(t, w.Flush())
		must(t, source.Connected(t.Context()))
		waits := make(chan error, 1)
		last := KindMark
		go func() {
			if !freeze {
				_, err := source.Pass(t.Context())
				waits <- err
				return
			}
			_, err := source.Survey(t.Context())
			if err == nil {
				_, err = source.Freeze(t.Context())
			}
			if err == nil {
				_, err = source.Finish(t.Context())
			}
			waits <- err
		}()
		if freeze {
			last = KindDone
		}
		for f, err := r.Next(); f.Kind != last; f, err = r.Next() {
			must(t, err)
		}
		must(t, source.Close())
		for name, c := range map[string]chan error{"Pass or Finish": waits, "Serve": served} {
			if err := <-c; !errors.Is(err, ErrClosed) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := source.Pass(t.Context()); !errors.Is(err, ErrClosed) {
			t.Errorf("Pass after Close: %v", err)
		}
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

// said counts the pages that the receiver has verified.
func said(s *session) (n int) {
	for _, verified := range s.verified {
		if verified {
			n++
		}
	}
	return n
}

// TestKilled: of memory that is gone nothing is said, and least of all that it is
// zeros.
func TestKilled(t *testing.T) {
	for name, finishing := range map[string]bool{"at once": true, "when it is asked for": false} {
		t.Run(name, func(t *testing.T) {
			init := startPod(t, "fill", "4", "0")
			s := newSession(t, init)
			s.connect(false)
			_, err := s.source.Pass(t.Context())
			must(t, err)
			stop(t, init)
			left, err := s.source.Freeze(t.Context())
			must(t, err)
			end := func() {
				must(t, unix.Kill(init, unix.SIGKILL)) // nobody reaps it
				deadline := time.Now().Add(time.Minute)
				for stat, err := procfs.ReadStat(init); err != nil || stat.State != 'Z'; stat, err = procfs.ReadStat(init) {
					if time.Now().After(deadline) {
						t.Fatalf("the pod does not end: %v", err)
					}
					runtime.Gosched()
				}
			}
			if finishing {
				end()
				if _, err := s.source.Finish(t.Context()); err == nil {
					t.Error("the memory of a process that is gone was finished")
				}
				must(t, s.source.Close())
				<-s.ended
				if n := said(s); n > 0 {
					t.Errorf("%d pages were said", n)
				}
				return
			}
			must(t, s.source.Close())
			<-s.ended
			if s.source, err = Reopen(SourceOptions{Init: init, Log: slog.New(slog.DiscardHandler)}); err != nil {
				t.Fatal(err)
			}
			end()
			before := said(s)
			s.connect(true, Region{PID: 1, Start: left[0].Start, End: left[0].End})
			select {
			case err := <-s.ended:
				if err == nil {
					t.Error("the connection came to its end")
				}
			case <-time.After(time.Minute):
				t.Error("the connection goes on")
			}
			if n := said(s) - before; n > 0 {
				t.Errorf("%d pages were said", n)
			}
			must(t, s.source.Close())
		})
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
	second, peer := connection(t)
	defer peer.Close()
	go func() { s.serve <- s.source.Serve(second) }()
	w = NewWriter(peer)
	must(t, w.Write(Frame{Kind: KindHello, Flags: FlagAgain}))
	must(t, w.Flush())
	if err := <-s.serve; !errors.Is(err, ErrLost) {
		t.Errorf("Serve: %v", err)
	}
}
