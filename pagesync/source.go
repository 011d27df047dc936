package pagesync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"

	"github.com/zeebo/xxh3"

	"podd/procfs"
)

var (
	// ErrLost means that the connection of the pager was lost before the pod was
	// frozen: what the target has is not known any more. The move fails, or starts
	// anew with a new Source and an empty store.
	ErrLost = errors.New("the pager's connection was lost")
	// ErrClosed means that the Source was closed.
	ErrClosed = errors.New("the source of memory is closed")
)

// SourceOptions say whose memory is sent.
type SourceOptions struct {
	// Init is the pid of the pod's init, as the host sees it.
	Init int
	Log  *slog.Logger
}

// Source sends the memory of one pod in one move. Survey, Pass, Freeze and
// Finish are called one after the other, by one goroutine at a time; Serve, the
// accessors and Close by any.
type Source struct {
	init       int
	log        *slog.Logger
	seed       uint64
	zero       digest
	compressor *compressor

	// Those of the last survey, and only one goroutine's until the pod is frozen;
	// then nothing but their chunks changes.
	processes []*process

	mu      sync.Mutex
	phase   phase
	link    *link
	final   *link  // which had all passes and was told the final regions
	err     error  // why there can be no more passes
	acked   uint64 // number of the last mark acked
	marks   uint64 // sent
	regions []Region
	changed chan struct{}  // closed at any change of the above, and replaced
	users   sync.WaitGroup // of the processes

	first    chan struct{} // closed at the first connection
	settled  chan struct{} // closed once the pager has everything
	closed   chan struct{}
	patience <-chan struct{} // see Yield
	wants    wants
}

type phase int

const (
	running phase = iota
	frozen
	ended
)

// NewSource returns a Source for a running pod, of which nothing is at the
// target yet. The error is ErrUnsupported where the kernel lacks what it takes.
func NewSource(o SourceOptions) (*Source, error) {
	if err := Supported(); err != nil {
		return nil, err
	}
	c, err := newCompressor()
	if err != nil {
		return nil, fmt.Errorf("making a compressor: %w", err)
	}
	s := &Source{
		init: o.Init,
		log:  o.Log,
		// The hashes can't be foreseen by what runs in the pod.
		seed:       rand.Uint64(),
		compressor: c,
		changed:    make(chan struct{}),
		first:      make(chan struct{}),
		settled:    make(chan struct{}),
		closed:     make(chan struct{}),
	}
	s.zero = xxh3.Hash128Seed(make([]byte, PageSize), s.seed)
	s.wants.init()
	return s, nil
}

// Reopen returns a Source for a frozen pod whose target runs and still wants
// memory, after the one that there was has ended with its program. It answers
// wants; nobody calls Pass or Freeze, and Finish waits until the pager has all.
// regions are the final ones, as far as known: the pager is told of them again.
func Reopen(o SourceOptions, regions ...Region) (*Source, error) {
	s, err := NewSource(o)
	if err != nil {
		return nil, err
	}
	found, err := podProcesses(o.Init)
	if err != nil {
		return nil, err
	}
	for _, id := range found {
		p, err := openProcess(id)
		if procfs.Gone(err) {
			continue
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("opening process %d: %w", id.pid, err), s.Close())
		}
		s.processes = append(s.processes, p)
	}
	s.phase, s.regions = frozen, slices.Clone(regions)
	return s, nil
}

// Serve is given a connection of the pager and returns when that ends, with the
// reason. A new connection replaces the one before. Before the pod is frozen
// there can be only one: ErrLost is for a second.
func (s *Source) Serve(conn net.Conn) error {
	l := newLink(conn)
	// Also if this fails before the link is known to Close.
	stop := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-s.closed:
			l.fail(ErrClosed)
		case <-stop:
		}
	}()
	err := s.use()
	if err == nil {
		err = s.serve(l)
		s.users.Done()
	}
	l.fail(err)
	close(stop)
	<-watched
	return l.cause()
}

func (s *Source) serve(l *link) error {
	f, err := l.r.Next()
	if err != nil {
		return err
	}
	if f.Kind != KindHello {
		return fmt.Errorf("%w: %v instead of hello", ErrFrame, f.Kind)
	}
	if err := s.attach(l, f.Flags&FlagAgain != 0); err != nil {
		return err
	}
	defer s.detach(l)
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		if err := s.answer(l); err != nil {
			l.fail(err)
		}
	}()
	err = s.listen(l)
	l.fail(err)
	s.wants.wake()
	<-answered
	return err
}

// attach makes l the connection that frames go to.
func (s *Source) attach(l *link, again bool) error {
	s.mu.Lock()
	switch {
	case s.phase == ended:
		s.mu.Unlock()
		return ErrClosed
	case s.phase == running && (again || s.link != nil || s.err != nil):
		s.mu.Unlock()
		return ErrLost
	}
	previous := s.link
	s.link = l
	final := s.phase == frozen
	regions := s.regions
	s.closeOnce(s.first)
	s.notify()
	s.mu.Unlock()
	if !final {
		return nil
	}
	if previous != nil {
		previous.fail(errors.New("replaced by a new one"))
	}
	s.wants.reset()
	s.log.Info("pager is connected to the frozen pod")
	if regions == nil {
		return nil
	}
	return l.send(true, true, Frame{Kind: KindRegions, Flags: FlagFinal, Regions: regions})
}

func (s *Source) closeOnce(c chan struct{}) {
	select {
	case <-c:
	default:
		close(c)
	}
}

// detach says that l has ended.
func (s *Source) detach(l *link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.link == l && s.phase == running {
		s.err = fmt.Errorf("%w: %w", ErrLost, l.cause())
		s.log.Warn("pager's connection was lost before the freeze", "error", l.cause())
	}
	s.notify()
}

// notify wakes who waits for a change; s.mu is held.
func (s *Source) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// listen takes in what the pager says.
func (s *Source) listen(l *link) error {
	for {
		f, err := l.r.Next()
		if err != nil {
			if err == io.EOF {
				return errors.New("closed by the pager")
			}
			return err
		}
		switch f.Kind {
		case KindAck:
			if err := s.ack(f.Number); err != nil {
				return err
			}
		case KindWant:
			s.mu.Lock()
			phase := s.phase
			s.mu.Unlock()
			if phase != frozen {
				return fmt.Errorf("%w: a want before the freeze", ErrFrame)
			}
			if !s.wants.add(f.Region(), f.Flags&FlagFault != 0, l.gone) {
				return l.cause()
			}
		default:
			return fmt.Errorf("%w: %v from the pager", ErrFrame, f.Kind)
		}
	}
}

func (s *Source) ack(number uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if number == Done {
		if s.phase != frozen {
			return fmt.Errorf("%w: done is acked before the freeze", ErrFrame)
		}
		s.closeOnce(s.settled)
	} else {
		if number > s.marks {
			return fmt.Errorf("%w: ack of mark %d; the last was %d", ErrFrame, number, s.marks)
		}
		s.acked = max(s.acked, number)
	}
	s.notify()
	return nil
}

// Connected waits for the first connection of the pager.
func (s *Source) Connected(ctx context.Context) error {
	select {
	case <-s.first:
		return nil
	case <-s.closed:
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// use keeps the processes open until s.users.Done.
func (s *Source) use() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.phase == ended {
		return ErrClosed
	}
	s.users.Add(1)
	return nil
}

// current returns the connection for a pass.
func (s *Source) current() (*link, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.phase == ended:
		return nil, ErrClosed
	case s.phase == frozen:
		return nil, errors.New("the pod is frozen already")
	case s.err != nil:
		return nil, s.err
	case s.link == nil:
		return nil, errors.New("the pager has not connected yet")
	}
	return s.link, nil
}

// Close ends everything under way, waits for it, and lets go of the processes.
func (s *Source) Close() error {
	s.mu.Lock()
	if s.phase == ended {
		s.mu.Unlock()
		return nil
	}
	s.phase = ended
	close(s.closed)
	l := s.link
	s.notify()
	s.mu.Unlock()
	if l != nil {
		l.fail(ErrClosed)
	}
	s.wants.wake()
	s.users.Wait()
	for _, p := range s.processes {
		p.close()
	}
	return nil
}
