package pager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"podd/pagesync"
)

// Protocol is what the pager asks the source's podd to upgrade a connection to.
const Protocol = "podd-memory"

const (
	// The pause after a connection that was lost; it doubles.
	minPause = 50 * time.Millisecond
	maxPause = 2 * time.Second
	// lastTries is how often the source is to be told that nothing more is needed.
	lastTries = 10
	// warnInterval is how often the log says that there is no connection.
	warnInterval = 5 * time.Minute

	// What is asked for at once when nothing comes by itself.
	wantPages    = pagesync.MaxPayload / pagesync.PageSize
	wantsAtOnce  = 16
	faultPages   = 16 // and with a page that a fault waits for
	stalledCause = "the source of its memory can't be reached"
)

// link is the connection to the source, and the next ones.
type link struct {
	o       Options
	log     *slog.Logger
	content *content
	meta    *metaFile
	freezer freezer
	arrived func() // tells the handler

	// wake has a connection's sender look for what to ask for.
	wake chan struct{}

	mu        sync.Mutex
	connected bool
	cause     string // why there is no connection
	acked     bool   // the source was told that nothing more is needed
	abandoned bool   // nobody is left who needs anything
}

func newLink(o Options, log *slog.Logger, c *content, m *metaFile, arrived func()) *link {
	return &link{o: o, log: log, content: c, meta: m, freezer: freezer(o.FreezerDir), arrived: arrived, wake: make(chan struct{}, 1)}
}

func (l *link) want() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// enough reports whether the source has nothing more to say.
func (l *link) enough() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.abandoned || l.content.isFinal() && l.content.missing() == 0
}

// abandon has the source told that nothing more is needed.
func (l *link) abandon() {
	l.mu.Lock()
	l.abandoned = true
	l.mu.Unlock()
	l.want()
}

// run keeps a connection as long as one is needed, or ctx. Before the final
// regions the first that is lost is the last: the move begins anew.
func (l *link) run(ctx context.Context) error {
	tries := 0
	var warned time.Time
	for pause := minPause; ; pause = min(2*pause, maxPause) {
		talked, err := l.connect(ctx)
		l.setConnected(false, err)
		enough := l.enough()
		if tries++; !enough {
			tries = 0
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case enough && (l.hasAcked() || tries > lastTries):
			return nil
		case talked && !l.content.isFinal():
			return fmt.Errorf("the connection to the source was lost before the pod was frozen: %w", err)
		case errors.Is(err, errSource) || errors.Is(err, pagesync.ErrFrame):
			if !l.meta.get().Running {
				return err
			}
		}
		if talked {
			pause = minPause
		}
		if talked || time.Since(warned) > warnInterval {
			warned = time.Now()
			l.log.Warn("no connection to the source of the memory; trying again", "source", l.o.Source, "missing", l.content.missing()*pageSize, "error", err)
		}
		if l.meta.get().Running && !enough {
			if err := l.meta.freeze(l.freezer, stalledCause); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

func (l *link) setConnected(connected bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.connected = connected
	l.cause = ""
	if err != nil {
		l.cause = err.Error()
	}
}

func (l *link) setAcked() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.acked = true
}

func (l *link) hasAcked() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.acked
}

func (l *link) status() (connected bool, cause string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.connected, l.cause
}

// connect makes a connection and serves it until it ends.
func (l *link) connect(ctx context.Context) (talked bool, err error) {
	conn, err := dial(ctx, l.o)
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	again := l.meta.get().Hello
	if err := l.meta.change(func(m *meta) { m.Hello = true }); err != nil {
		return false, err
	}
	s := &sender{link: l, conn: conn, w: pagesync.NewWriter(conn), acks: make(chan uint64, 256), ended: make(chan struct{}), again: again}
	if err := s.hello(); err != nil {
		return false, err
	}
	l.setConnected(true, nil)
	l.content.askAgain()
	var wg sync.WaitGroup
	wg.Go(func() { l.endRevoked(ctx, conn) })
	wg.Go(func() {
		if err := s.run(); err != nil {
			conn.Close() // the reader says why
		}
	})
	err = l.receive(pagesync.NewReader(conn), s)
	close(s.ended)
	cancel()
	conn.Close()
	wg.Wait()
	return true, err
}

// receive stores what the source sends.
func (l *link) receive(r *pagesync.Reader, s *sender) error {
	if l.content.isFinal() {
		s.poke()
	}
	for first := true; ; first = false {
		f, err := r.Next()
		switch {
		case err == io.EOF:
			return errors.New("the source has closed the connection")
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("the source has not said anything for %v", silenceLimit)
		case err != nil:
			return err
		}
		if first && l.meta.get().Running {
			// Who waits for pages is answered from now on.
			if err := l.meta.thaw(l.freezer, stalledCause); err != nil {
				return err
			}
		}
		switch f.Kind {
		case pagesync.KindRegions:
			if err := l.content.announce(f.Regions, f.Flags&pagesync.FlagFinal != 0); err != nil {
				return err
			}
			s.poke()
		case pagesync.KindData, pagesync.KindZero, pagesync.KindSame, pagesync.KindAbsent:
			if err := l.content.put(f); err != nil {
				return err
			}
		case pagesync.KindMark:
			s.ack(f.Number)
			continue
		case pagesync.KindDone:
			if !l.content.isFinal() {
				return fmt.Errorf("%w: done before the final regions", errSource)
			}
			s.done.Store(true)
		default:
			return fmt.Errorf("%w: it sent %v", errSource, f.Kind)
		}
		if err := s.watch(true); err != nil {
			return err
		}
		if l.content.isFinal() {
			l.arrived()
			if s.again || s.done.Load() || l.content.missing() == 0 {
				s.poke()
			}
		}
	}
}
