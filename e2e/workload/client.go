package workload

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// DialFunc connects to an address, as net.Dialer.DialContext does.
type DialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// dial uses f, or the current network namespace if f is nil.
func (f DialFunc) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if f == nil {
		f = new(net.Dialer).DialContext
	}
	conn, err := f(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", address, err)
	}
	return conn, nil
}

// patience is how long a client waits for an answer before it gives the
// connection up as dead: longer than any move may take.
const patience = 60 * time.Second

// Silence measures the longest time between two signs of life.
type Silence struct {
	mu       sync.Mutex
	last     time.Time
	longest  time.Duration
	lap      time.Duration
	beginner sync.Once
	started  chan struct{}
}

func newSilence() *Silence { return &Silence{started: make(chan struct{})} }

// mark is a sign of life.
func (s *Silence) mark() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.extend(time.Now())
	s.beginner.Do(func() { close(s.started) })
}

// extend counts the time since the last sign up to now. The caller holds mu.
func (s *Silence) extend(now time.Time) {
	if !s.last.IsZero() {
		gap := now.Sub(s.last)
		s.longest = max(s.longest, gap)
		s.lap = max(s.lap, gap)
	}
	s.last = now
}

// peek returns the longest silences in all and in this lap, the one that lasts
// included. The caller holds mu.
func (s *Silence) peek() (longest, lap time.Duration) {
	if s.last.IsZero() {
		return 0, 0
	}
	gap := time.Since(s.last)
	return max(s.longest, gap), max(s.lap, gap)
}

// Started is closed at the first sign of life.
func (s *Silence) Started() <-chan struct{} { return s.started }

// Longest returns the longest silence so far, the one that lasts included.
func (s *Silence) Longest() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	longest, _ := s.peek()
	return longest
}

// Lap returns the longest silence since the last Lap, the one that lasts
// included, and begins a new lap.
func (s *Silence) Lap() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, lap := s.peek()
	s.lap = 0
	return lap
}

// stopper lets Run end in good order.
type stopper struct {
	once sync.Once
	ch   chan struct{}
}

func newStopper() *stopper { return &stopper{ch: make(chan struct{})} }

// Stop asks Run to finish what is under way, check it, and return.
func (s *stopper) Stop() { s.once.Do(func() { close(s.ch) }) }

func (s *stopper) stopped() bool {
	select {
	case <-s.ch:
		return true
	default:
		return false
	}
}

// pause waits for d, or less if the client is stopped or ctx done.
func (s *stopper) pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-s.ch:
	case <-ctx.Done():
	}
}

// closeOnDone closes conn when ctx is done, to end its reads and writes. Call
// the result when the connection is not used any more.
func closeOnDone(ctx context.Context, conn net.Conn) (release func() bool) {
	return context.AfterFunc(ctx, func() { conn.Close() })
}

// ctxErr prefers the reason why ctx ended to the error that its end caused.
func ctxErr(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
