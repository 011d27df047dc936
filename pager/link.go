package pager

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"podd/pagesync"
	"podd/trust"
)

// Protocol is what the pager asks the source's podd to upgrade a connection to.
const Protocol = "podd-memory"

const (
	dialTimeout = 5 * time.Second
	// silenceLimit is how long the source may take to confirm what the kernel has
	// sent it, or that it is there.
	silenceLimit = 10 * time.Second
	// The pause after a connection that was lost; it doubles.
	minPause = 50 * time.Millisecond
	maxPause = 2 * time.Second
	// lastTries is how often the source is to be told that nothing more is needed.
	lastTries = 10

	maxRefusal = 4096 // bytes of what a source says when it refuses

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
		l.log.Warn("no connection to the source of the memory; trying again", "source", l.o.Source, "missing", l.content.missing()*pageSize, "error", err)
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
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	again := l.meta.get().Hello
	if err := l.meta.change(func(m *meta) { m.Hello = true }); err != nil {
		return false, err
	}
	s := &sender{link: l, w: pagesync.NewWriter(conn), acks: make(chan uint64, 256), ended: make(chan struct{}), again: again}
	if err := s.hello(); err != nil {
		return false, err
	}
	l.setConnected(true, nil)
	l.content.askAgain()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.run(); err != nil {
			conn.Close() // the reader says why
		}
	})
	err = l.receive(pagesync.NewReader(conn), s)
	close(s.ended)
	conn.Close()
	wg.Wait()
	return true, err
}

// receive stores what the source sends.
func (l *link) receive(r *pagesync.Reader, s *sender) error {
	for {
		f, err := r.Next()
		if err == io.EOF {
			return errors.New("the source has closed the connection")
		}
		if err != nil {
			return err
		}
		switch f.Kind {
		case pagesync.KindRegions:
			if err := l.content.announce(f.Regions, f.Flags&pagesync.FlagFinal != 0); err != nil {
				return err
			}
			if s.again && l.meta.get().Running {
				// Who waits for pages is answered now.
				if err := l.meta.thaw(l.freezer, stalledCause); err != nil {
					return err
				}
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
		if l.content.isFinal() {
			l.arrived()
			if s.again || s.done.Load() || l.content.missing() == 0 {
				s.poke()
			}
		}
	}
}

// dial connects to the source's podd and has the connection become one of frames.
func dial(ctx context.Context, o Options) (net.Conn, error) {
	store, err := trust.Open(trust.Dir(o.StateDir)) // the certificate may have been renewed
	if err != nil {
		return nil, err
	}
	if len(o.Revoked) > 0 {
		revoked := map[string]bool{}
		for _, serial := range o.Revoked {
			revoked[serial] = true
		}
		store.SetRevoked(func(serial string) bool { return revoked[serial] })
	}
	var errs []error
	for _, address := range o.Addresses {
		conn, err := dialAddress(ctx, o, store, address)
		if err == nil {
			return conn, nil
		}
		errs = append(errs, fmt.Errorf("connecting to %s at %s: %w", o.Source, address, err))
	}
	if len(errs) == 0 {
		return nil, errors.New("the source has no address")
	}
	return nil, errors.Join(errs...)
}

func dialAddress(ctx context.Context, o Options, store *trust.Store, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	dialer := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silenceLimit / 4, Interval: silenceLimit / 4, Count: 3}}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	conn, err := upgrade(ctx, o, store, raw)
	if err != nil {
		raw.Close()
		return nil, err
	}
	return conn, nil
}

func upgrade(ctx context.Context, o Options, store *trust.Store, raw net.Conn) (net.Conn, error) {
	control, err := raw.(*net.TCPConn).SyscallConn()
	if err != nil {
		return nil, err
	}
	var setErr error
	err = control.Control(func(fd uintptr) {
		setErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silenceLimit.Milliseconds()))
	})
	if err := errors.Join(err, setErr); err != nil {
		return nil, err
	}
	config := store.ClientTLS(trust.ServerName(trust.KindHost, o.Source))
	config.NextProtos = []string{"http/1.1"}
	config.DynamicRecordSizingDisabled = true
	conn := tls.Client(&buffered{raw, bufio.NewReaderSize(raw, 264<<10)}, config)
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return nil, err
	}
	request, err := http.NewRequest(http.MethodPost, "https://"+trust.ServerName(trust.KindHost, o.Source)+o.Path, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", Protocol)
	if err := request.Write(conn); err != nil {
		return nil, err
	}
	reader := bufio.NewReader(conn)
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		reason, _ := io.ReadAll(io.LimitReader(response.Body, maxRefusal)) // for people
		return nil, fmt.Errorf("it refused: %s: %s", response.Status, strings.TrimSpace(string(reason)))
	}
	if reader.Buffered() > 0 {
		return nil, errors.New("it does not wait for the pager's hello")
	}
	return conn, conn.SetDeadline(time.Time{})
}

// buffered reads a socket in large pieces: TLS asks for each record of 16 KiB.
type buffered struct {
	net.Conn
	r *bufio.Reader
}

// Read implements net.Conn.
func (b *buffered) Read(p []byte) (int, error) { return b.r.Read(p) }
