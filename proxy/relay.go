package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"podd/daemon"
	"podd/directory"
	"podd/netconn"
	"podd/pod"
)

const (
	// maxRelays is how many relays there are at a time, those included that
	// wait for the second host; maxRelaysFrom is how many one host may ask for.
	maxRelays     = 32
	maxRelaysFrom = 8
	// relaySilence is how long a host may take or confirm nothing.
	relaySilence = 10 * time.Second
	// lastWords is how long what one host has still to say may take once the
	// other has ended the connection.
	lastWords = 2 * time.Second
	// maxQuestions and questionsLimit bound a relay that is not for a move: how
	// many bytes it carries, and for how long.
	maxQuestions   = 16 << 20
	questionsLimit = time.Minute
	relayBuffer    = 256 << 10
)

// relays connects hosts that can't reach each other, two at a time. What they
// say is encrypted for each other; nothing of it is kept here.
type relays struct {
	// find reads a request, move the journal.
	find    func(ctx context.Context, id string) (*directory.Relay, error)
	move    func(ctx context.Context, id string) (*pod.Move, error)
	metrics *metrics
	log     *slog.Logger
	// patience is how long the first host waits.
	patience time.Duration
	// ctx ends all relays, wait is for those that go on.
	ctx  context.Context
	wait sync.WaitGroup

	mu     sync.Mutex
	closed bool
	open   map[string]*relay // by the request's ID
}

func newRelays(ctx context.Context, dir *directory.Directory, m *metrics, log *slog.Logger) *relays {
	return &relays{
		ctx: ctx, find: dir.Relay, move: dir.Move, metrics: m, log: log, patience: daemon.RelayWait, open: map[string]*relay{},
	}
}

// relay is one request for which at least one of its hosts has come.
type relay struct {
	directory.Relay
	// first is the host that came first; met is closed when the second has.
	first string
	met   chan struct{}
	// conn takes the first host's connection to the handler of the second,
	// which does the work; nil when it was lost.
	conn chan net.Conn
}

// ServeHTTP is where both hosts of a relay come to (daemon.RelayPath).
func (s *relays) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, err := daemon.HostFrom(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	if err := netconn.WantUpgrade(w, r, daemon.RelayProtocol); err != nil {
		return
	}
	id := r.URL.Query().Get(daemon.RelayQuery)
	request, err := s.admit(r.Context(), host, id)
	if err != nil {
		s.refuse(w, host, id, err)
		return
	}
	re, err := s.enter(request, host)
	if err != nil {
		s.refuse(w, host, id, err)
		return
	}
	if re.first == host {
		s.serveFirst(w, r, re)
		return
	}
	defer s.leave(re)
	second, err := takeOver(w)
	first := <-re.conn
	switch {
	case first == nil && second != nil:
		second.Close() // the other one was lost just now
	case first != nil && second == nil:
		first.Close()
	case first != nil && re.first == re.From:
		s.carry(re, first, second)
		return
	case first != nil:
		s.carry(re, second, first)
		return
	}
	s.metrics.relayEnded("unmet")
	s.log.Warn("a host of a relay was lost before it began", "from", re.From, "to", re.To, "error", err)
}

// refuse says why a host is not connected.
func (s *relays) refuse(w http.ResponseWriter, host, id string, err error) {
	status := http.StatusServiceUnavailable
	switch {
	case errors.Is(err, pod.ErrDenied):
		status = http.StatusForbidden
	case errors.Is(err, pod.ErrNotFound):
		status = http.StatusNotFound
	case errors.Is(err, pod.ErrConflict):
		status = http.StatusConflict
	}
	s.metrics.relayEnded("refused")
	s.log.Warn("a relay was refused", "host", host, "request", id, "error", err)
	http.Error(w, err.Error(), status)
}

// admit makes sure that a host is one of the two of a request, and that the move
// it is for goes on between these.
func (s *relays) admit(ctx context.Context, host, id string) (*directory.Relay, error) {
	request, err := s.find(ctx, id)
	if err != nil {
		return nil, err
	}
	if host != request.From && host != request.To || request.From == request.To {
		return nil, fmt.Errorf("%w: request %s is not about host %s", pod.ErrDenied, id, host)
	}
	if request.Move == "" {
		return request, nil
	}
	m, err := s.move(ctx, request.Move)
	if err != nil {
		return nil, err
	}
	if m.Source != request.From || m.Target != request.To {
		return nil, fmt.Errorf("%w: move %s goes from host %s to %s", pod.ErrDenied, m.ID, m.Source, m.Target)
	}
	if m.State != pod.MoveRunning || m.Strategy != pod.StrategyCheckpointServer {
		return nil, fmt.Errorf("%w: move %s, by strategy %s, is %s", pod.ErrConflict, m.ID, m.Strategy, m.State)
	}
	return request, nil
}

// enter notes that a host has come. For the second one, met is closed then.
func (s *relays) enter(request *directory.Relay, host string) (*relay, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("%w: podproxy is stopping", pod.ErrUnavailable)
	}
	if re := s.open[request.ID]; re != nil {
		select {
		case <-re.met:
			return nil, fmt.Errorf("%w: request %s is in use", pod.ErrConflict, request.ID)
		default:
		}
		if re.first == host {
			return nil, fmt.Errorf("%w: host %s waits for request %s already", pod.ErrConflict, host, request.ID)
		}
		close(re.met)
		s.wait.Add(1)
		return re, nil
	}
	from := 0
	for _, re := range s.open {
		if re.From == request.From {
			from++
		}
		if re.Move != "" && re.Move == request.Move {
			return nil, fmt.Errorf("%w: move %s has a relay already", pod.ErrConflict, re.Move)
		}
	}
	if len(s.open) >= maxRelays || from >= maxRelaysFrom {
		return nil, fmt.Errorf("%w: there are %d relays, %d of them for host %s", pod.ErrExhausted, len(s.open), from, request.From)
	}
	re := &relay{Relay: *request, first: host, met: make(chan struct{}), conn: make(chan net.Conn, 1)}
	s.open[request.ID] = re
	s.metrics.relaysOpen.Set(float64(len(s.open)))
	return re, nil
}

// leave forgets a relay whose hosts have met.
func (s *relays) leave(re *relay) {
	s.mu.Lock()
	s.forget(re)
	s.mu.Unlock()
	s.wait.Done()
}

func (s *relays) forget(re *relay) {
	delete(s.open, re.ID)
	s.metrics.relaysOpen.Set(float64(len(s.open)))
}

// close lets no more relays begin and waits for those that are left, which end
// with ctx.
func (s *relays) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wait.Wait()
}

// abandon forgets a relay whose second host has not come; false when it has.
func (s *relays) abandon(re *relay) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-re.met:
		return false
	default:
	}
	s.forget(re)
	return true
}

// serveFirst waits for the second host and gives its handler the connection.
func (s *relays) serveFirst(w http.ResponseWriter, r *http.Request, re *relay) {
	timer := time.NewTimer(s.patience)
	defer timer.Stop()
	other := re.To
	if re.first == re.To {
		other = re.From
	}
	select {
	case <-re.met:
	case <-timer.C:
	case <-r.Context().Done():
	case <-s.ctx.Done():
	}
	if s.abandon(re) {
		s.metrics.relayEnded("unmet")
		http.Error(w, fmt.Sprintf("host %s did not come within %s", other, s.patience), http.StatusGatewayTimeout)
		return
	}
	conn, err := takeOver(w)
	if err != nil {
		s.log.Warn("a host of a relay was lost", "host", re.first, "error", err)
	}
	re.conn <- conn // nil when it was lost
}

// takeOver makes the connection of a request one that carries bytes, and says so.
func takeOver(w http.ResponseWriter) (net.Conn, error) {
	conn, err := netconn.TakeOver(w, daemon.RelayProtocol, relaySilence)
	if err != nil {
		return nil, err
	}
	return daemon.Bulk(conn), nil
}

// carry copies both ways until either host ends the connection, or the daemon
// does, and closes both.
func (s *relays) carry(re *relay, from, to net.Conn) {
	log := s.log.With("move", re.Move, "from", re.From, "to", re.To)
	log.Debug("a relay begins")
	end := func() {
		// Without TLS's last words: a host that hangs would not take them. An
		// error means that it is closed already.
		netconn.Unwrap(from).Close()
		netconn.Unwrap(to).Close()
	}
	defer func() {
		end()
		// What is above the socket lets go of its buffers, and is kept track of
		// (daemon.Revocations) until it is closed, too. That its last words don't go
		// is on purpose.
		_ = from.Close()
		_ = to.Close()
	}()
	defer context.AfterFunc(s.ctx, end)()
	left := new(atomic.Int64)
	left.Store(math.MaxInt64)
	if re.Move == "" {
		left.Store(maxQuestions)
		timer := time.AfterFunc(questionsLimit, end)
		defer timer.Stop()
	}
	began := time.Now()
	var sent, answered int64
	ended := make(chan error, 2)
	go func() { ended <- s.copy(to, from, left, &sent) }()
	go func() { ended <- s.copy(from, to, left, &answered) }()
	err := <-ended
	// What the one said last is with the other, who may answer with its own.
	timer := time.AfterFunc(lastWords, end)
	defer timer.Stop()
	err = errors.Join(err, <-ended)
	s.metrics.relayEnded("carried")
	log.Info("a relay has ended", "sent", sent, "answered", answered, "took", time.Since(began), "error", err)
}

var errTooMuch = errors.New("more than a relay without a move may carry")

// copy copies until src ends, and passes that end on. left is what the relay may
// still carry, in bytes; sent counts what it has.
func (s *relays) copy(dst, src net.Conn, left *atomic.Int64, sent *int64) error {
	buffer := make([]byte, relayBuffer)
	for {
		n, err := src.Read(buffer)
		if n > 0 && left.Add(-int64(n)) < 0 {
			return errTooMuch
		}
		if n > 0 {
			if _, err := dst.Write(buffer[:n]); err != nil {
				return fmt.Errorf("passing on: %w", err)
			}
			*sent += int64(n)
			s.metrics.relayBytes.Add(float64(n))
		}
		if err == nil {
			continue
		}
		// That an end is not a clean one is seen by the TLS inside.
		if half, ok := dst.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite() // the other host may have gone as well
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
}
