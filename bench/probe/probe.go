// Package probe is the client of the benchmark: it sends a small request every
// millisecond on one live connection, checks every byte of the answers, and
// measures for how long none came.
package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Interval is the time between two requests.
const Interval = time.Millisecond

// patience is how long an answer may take before the connection counts as
// lost, and backlog how many requests may be without one.
const (
	patience = 30 * time.Second
	backlog  = int(2 * patience / Interval)
)

// Dialogue is what is said on a connection.
type Dialogue interface {
	// Request appends the nth request to b.
	Request(b []byte, n uint64) []byte
	// Answer reads the answer to the nth request, and checks it.
	Answer(r *bufio.Reader, n uint64) error
}

// Probe is a client with one connection. Its methods are for one goroutine.
type Probe struct {
	conn     net.Conn
	dialogue Dialogue
	sent     uint64
	// expected has, for each request that was sent, what reads its answer.
	expected chan func(*bufio.Reader) error
	received chan struct{} // closed when nothing is received any more

	mu      sync.Mutex
	waiting int // requests without an answer
	changed chan struct{}
	last    time.Time
	longest time.Duration
	err     error

	stopSending func()
}

// New returns a probe that says nothing yet; it closes conn in the end.
func New(conn net.Conn, d Dialogue) *Probe {
	p := &Probe{
		conn: conn, dialogue: d, expected: make(chan func(*bufio.Reader) error, backlog),
		received: make(chan struct{}), changed: make(chan struct{}, 1),
	}
	go p.receive()
	return p
}

// Start begins to send.
func (p *Probe) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	p.Reset()
	go func() {
		defer close(done)
		p.send(ctx)
	}()
	p.stopSending = func() {
		cancel()
		<-done
		p.stopSending = nil
	}
}

// Reset forgets the silences up to now.
func (p *Probe) Reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last, p.longest = time.Now(), 0
}

// Stop ends the sending, waits for the answers that are missing, and returns
// the longest time without one since Start or Reset.
func (p *Probe) Stop(ctx context.Context) (time.Duration, error) {
	if p.stopSending != nil {
		p.stopSending()
	}
	if err := p.settle(ctx); err != nil {
		return 0, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.longest, nil
}

// Ask sends a request out of turn and has its answer read. The probe must be
// stopped.
func (p *Probe) Ask(ctx context.Context, request []byte, answer func(*bufio.Reader) error) error {
	if err := p.say(request, answer); err != nil {
		return err
	}
	return p.settle(ctx)
}

// Close closes the connection.
func (p *Probe) Close() error {
	p.fail(net.ErrClosed)
	err := p.conn.Close() // also ends a send that does not get on
	if p.stopSending != nil {
		p.stopSending()
	}
	close(p.expected)
	<-p.received
	return err
}

func (p *Probe) send(ctx context.Context) {
	ticker := time.NewTicker(Interval)
	defer ticker.Stop()
	var b []byte
	for {
		n := p.sent
		p.sent++
		b = p.dialogue.Request(b[:0], n)
		if p.say(b, func(r *bufio.Reader) error { return p.dialogue.Answer(r, n) }) != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// say sends a request. It fails when anything has failed before.
func (p *Probe) say(request []byte, answer func(*bufio.Reader) error) error {
	p.mu.Lock()
	err := p.err
	p.waiting++
	p.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case p.expected <- answer:
	default:
		return p.fail(fmt.Errorf("%d requests have no answer", backlog))
	}
	err = p.conn.SetWriteDeadline(time.Now().Add(patience))
	if err == nil {
		_, err = p.conn.Write(request)
	}
	if err != nil {
		return p.fail(fmt.Errorf("sending: %w", err))
	}
	return nil
}

// receive reads answers until the connection fails or is closed.
func (p *Probe) receive() {
	defer close(p.received)
	r := bufio.NewReader(p.conn)
	for answer := range p.expected {
		if p.failed() {
			continue // until Close
		}
		if err := answer(r); err != nil {
			p.fail(fmt.Errorf("receiving: %w", err))
			continue
		}
		p.mu.Lock()
		now := time.Now()
		p.longest = max(p.longest, now.Sub(p.last))
		p.last = now
		p.waiting--
		p.mu.Unlock()
		p.signal()
	}
}

// settle waits until every request has its answer.
func (p *Probe) settle(ctx context.Context) error {
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	for {
		p.mu.Lock()
		err, waiting := p.err, p.waiting
		p.mu.Unlock()
		if err != nil || waiting == 0 {
			return err
		}
		select {
		case <-p.changed:
		case <-timeout.C:
			return p.fail(fmt.Errorf("no answer for %v: %d are missing", patience, waiting))
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// fail keeps the first error, and returns it.
func (p *Probe) fail(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
	p.signal()
	return p.err
}

func (p *Probe) failed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err != nil
}

// signal wakes settle.
func (p *Probe) signal() {
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// Err returns why the connection is no good any more, nil while it is.
func (p *Probe) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if errors.Is(p.err, net.ErrClosed) {
		return nil
	}
	return p.err
}
