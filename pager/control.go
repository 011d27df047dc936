package pager

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"podd/netconn"
)

const (
	controlName = "control"
	// maxMessage bounds a request and an answer, in bytes.
	maxMessage = 16 << 10
	// verifyPoll is how often it is looked whether what Verify waits for is there,
	// watchPoll the same for changes of the status.
	verifyPoll = 2 * time.Millisecond
	watchPoll  = 20 * time.Millisecond
	// watchTime is how long a watch waits for a change.
	watchTime = time.Second
)

// request is what podd asks a pager on a connection of its own; with attach comes
// a userfaultfd.
type request struct {
	Op string `json:"op"` // attach, stream, flush, verify, run, status, watch
	// PID of attach, in the pod.
	PID int `json:"pid,omitempty"`
	// Complete of verify: nothing may be missing. Wait is how long that may take.
	Complete bool          `json:"complete,omitempty"`
	Wait     time.Duration `json:"wait,omitempty"`
	// Last of watch: the status that is known.
	Last Status `json:"last,omitzero"`
}

type answer struct {
	Error  string `json:"error,omitempty"`
	Status Status `json:"status"`
}

func listen(dir string) (*net.UnixListener, error) {
	if err := os.Remove(filepath.Join(dir, controlName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("making the control socket: %w", err)
	}
	d, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("making the control socket: %w", err)
	}
	defer d.Close()
	l, err := netconn.ListenIn("unixpacket", d, controlName)
	if err != nil {
		return nil, fmt.Errorf("making the control socket: %w", err)
	}
	return l, nil // when it is closed the socket is the next one's
}

// server answers podd.
type server struct {
	h   *handler
	l   *link
	log *slog.Logger

	wg     sync.WaitGroup
	mu     sync.Mutex
	failed error // of the link
	conns  map[net.Conn]struct{}
	closed bool
}

func (s *server) run(l *net.UnixListener) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			s.wg.Wait()
			return
		}
		s.wg.Go(func() {
			defer conn.Close()
			if !s.keep(conn, true) {
				return
			}
			defer s.keep(conn, false)
			if err := s.serve(conn); err != nil {
				s.log.Warn("a request could not be answered", "error", err)
			}
		})
	}
}

// keep notes connections, to end them.
func (s *server) keep(conn net.Conn, open bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conns == nil {
		s.conns = map[net.Conn]struct{}{}
	}
	if open {
		s.conns[conn] = struct{}{}
	} else {
		delete(s.conns, conn)
	}
	return !s.closed
}

// close ends the connections of those who watch.
func (s *server) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for conn := range s.conns {
		conn.Close()
	}
}

func (s *server) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = err
}

func (s *server) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

func (s *server) serve(conn *net.UnixConn) error {
	r, fds, err := receive(conn)
	if err != nil {
		return err
	}
	if r.Op == "stream" {
		return s.stream(conn)
	}
	return s.reply(conn, s.answer(r, fds))
}

// stream takes processes without an answer to each, until the other end has heard
// that all were taken.
func (s *server) stream(conn *net.UnixConn) error {
	for {
		r, fds, err := receive(conn)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if r.Op == "flush" {
			return s.reply(conn, nil)
		}
		if err := s.answer(r, fds); err != nil {
			s.fail(fmt.Errorf("attaching process %d: %w", r.PID, err))
		}
	}
}

// receive reads a request, and the userfaultfd that comes with attach.
func receive(conn *net.UnixConn) (r request, fds []int, err error) {
	b, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(b, oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return r, nil, fmt.Errorf("reading a request: %w", err)
	}
	if fds, err = netconn.Descriptors(oob[:oobn]); err != nil {
		return r, nil, fmt.Errorf("reading a request: %w", err)
	}
	err = json.Unmarshal(b[:n], &r)
	if err != nil || r.Op != "attach" || len(fds) != 1 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		fds = nil
	}
	if err != nil {
		return r, nil, fmt.Errorf("reading a request: %w", err)
	}
	return r, fds, nil
}

func (s *server) reply(conn *net.UnixConn, err error) error {
	a := answer{Status: s.status()}
	if err != nil {
		a.Error = err.Error()
	}
	b, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("answering: %w", err)
	}
	if _, err := conn.Write(b); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("answering: %w", err)
	}
	return nil
}

func (s *server) answer(r request, fds []int) error {
	switch r.Op {
	case "attach":
		if len(fds) != 1 {
			return errors.New("no userfaultfd to attach")
		}
		return s.h.do(func() error { return s.h.attach(r.PID, fds[0]) })
	case "verify":
		return s.verify(r.Complete, time.Now().Add(r.Wait))
	case "run":
		if err := s.h.do(s.h.begin); err != nil && !errors.Is(err, errComplete) {
			return err
		}
		s.h.poke()
		return nil
	case "status":
		return nil
	case "watch":
		for deadline := time.Now().Add(watchTime); time.Now().Before(deadline) && !s.h.complete.Load(); {
			now := s.status()
			if now.State != r.Last.State || now.Cause != r.Last.Cause || now.Connected != r.Last.Connected {
				return nil
			}
			time.Sleep(watchPoll)
		}
		return nil
	}
	return fmt.Errorf("unknown request %q", r.Op)
}

func (s *server) status() Status {
	h := s.h
	m := h.meta.get()
	h.content.mu.Lock()
	final, data, unsaid := h.content.final, h.content.data, h.content.unsaid
	h.content.mu.Unlock()
	now := Status{
		State: StateWaiting, Filled: h.filled.Load(), Faults: h.faults.Load(),
		WorstFault: time.Duration(h.worst.Load()), Children: h.children.Load(), Restarts: m.Generation - 1,
	}
	if final {
		now.Total, now.Missing = (data+unsaid)*pageSize, unsaid*pageSize
	}
	now.Connected, now.Disconnected = s.l.status()
	if m.Running {
		now.State = StateFilling
	}
	if len(m.Frozen) > 0 {
		now.State, now.Cause = StateStalled, strings.Join(m.Frozen, "; ")
	}
	if m.Lost != "" {
		now.State, now.Cause = StateLost, m.Lost
	}
	return now
}
