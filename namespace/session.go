package namespace

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// ErrInterrupted means that the connection to a session ended before its
// command: the pod is about to be frozen, or has ended. The command itself goes
// on if the pod does.
var ErrInterrupted = errors.New("session interrupted")

// The sizes of podinit's packets (see podinit.c), in bytes.
const (
	maxInput   = 16 << 10
	maxRequest = 192 << 10
)

// ExecConfig is a further command for a running pod.
type ExecConfig struct {
	Command []string
	// Env holds NAME=VALUE pairs, added to the main command's environment.
	Env []string
	// User and WorkDir default to the pod's.
	User, WorkDir string
	// TTY gives the command a terminal of the given size, Stdin keeps its
	// input open.
	TTY, Stdin    bool
	Rows, Columns uint16
}

// Session is a connection to a command in the pod: one that Exec started, or the
// main one. One goroutine may read, any may call the rest.
type Session struct {
	id        string // empty for the main command
	container *Container
	conn      *net.UnixConn
	// buf holds the packet that Read returned last.
	buf [1 + maxInput]byte

	mu       sync.Mutex
	accepted uint64
}

// sessions are the connections of one container.
type sessions struct {
	mu     sync.Mutex
	closed bool
	open   map[*Session]struct{}
}

// Exec starts a command beside the main one. The init does it, so it is under
// the same limits and filters, and nothing of the host enters the pod. A command
// that can't be executed ends with 126 or 127 and says why on its stderr.
func (c *Container) Exec(ctx context.Context, config ExecConfig) (*Session, error) {
	if len(config.Command) == 0 || config.Command[0] == "" {
		return nil, fmt.Errorf("%w: no command given", pod.ErrInvalid)
	}
	for _, kv := range config.Env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" {
			return nil, fmt.Errorf("%w: environment %q: want NAME=VALUE", pod.ErrInvalid, kv)
		}
	}
	user, err := c.user(c.userName(config.User))
	if err != nil {
		return nil, err
	}
	id := make([]byte, 8)
	rand.Read(id)
	s, err := c.connect(ctx, "main")
	if err != nil {
		return nil, err
	}
	s.id = hex.EncodeToString(id)
	words := append([]string{"--id", s.id, "--cwd", c.workDir(config.WorkDir)}, identity(user)...)
	if config.User != "" {
		words = append(words, "--env", "HOME="+user.Home)
	}
	if config.TTY {
		words = append(words, "--tty", "--env", "TERM=xterm")
		if config.Rows > 0 && config.Columns > 0 {
			words = append(words, "--rows", strconv.Itoa(int(config.Rows)), "--columns", strconv.Itoa(int(config.Columns)))
		}
	}
	if config.Stdin {
		words = append(words, "--stdin")
	}
	for _, kv := range config.Env {
		words = append(words, "--env", kv)
	}
	words = append(append(words, "--"), config.Command...)
	request, err := encodeRequest(words)
	if err == nil {
		err = s.send('s', request)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("starting a command in %s: %w", c.id, err)
	}
	return s, nil
}

func encodeRequest(words []string) ([]byte, error) {
	var request []byte
	for _, word := range words {
		if strings.IndexByte(word, 0) >= 0 {
			return nil, fmt.Errorf("%w: %q has a zero byte", pod.ErrInvalid, word)
		}
		request = append(append(request, word...), 0)
	}
	if len(request) > maxRequest {
		return nil, fmt.Errorf("%w: command and environment have %d bytes; at most %d are possible", pod.ErrInvalid, len(request), maxRequest)
	}
	return request, nil
}

// Session connects again to a command that Exec started: after ErrInterrupted,
// or in another process. Output that was not read is still there. The error
// wraps pod.ErrNotFound if the command has ended and somebody was told, or
// nobody asked within a minute.
func (c *Container) Session(ctx context.Context, id string) (*Session, error) {
	if id == "" || strings.Trim(id, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%w: session %q", pod.ErrInvalid, id)
	}
	s, err := c.connect(ctx, "session-"+id)
	if err != nil {
		return nil, fmt.Errorf("session %s: %w", id, err)
	}
	s.id = id
	return s, nil
}

// Attach connects to the input of the main command: its terminal, or its
// standard input if the pod was made with Stdin. Its output is in Logs.
func (c *Container) Attach(ctx context.Context) (*Session, error) {
	return c.connect(ctx, "main")
}

// Sessions lists the commands that Exec started and that are still there.
func (c *Container) Sessions() ([]string, error) {
	dir, err := c.initDir()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxSegments)
	if err != nil && len(names) == 0 {
		return nil, fmt.Errorf("listing sessions of %s: %w", c.id, err)
	}
	var ids []string
	for _, name := range names {
		if id, ok := strings.CutPrefix(name, "session-"); ok {
			if id, ok = strings.CutSuffix(id, ".sock"); ok {
				ids = append(ids, id)
			}
		}
	}
	return ids, nil
}

// connect connects to one of the sockets in the pod.
func (c *Container) connect(ctx context.Context, name string) (*Session, error) {
	c.sessions.mu.Lock()
	defer c.sessions.mu.Unlock()
	if c.sessions.closed {
		return nil, fmt.Errorf("connecting to %s: %w", c.id, ErrInterrupted)
	}
	if _, running := c.PID(); !running {
		return nil, fmt.Errorf("connecting to %s: %w: not running", c.id, pod.ErrPhase)
	}
	root, err := openDir(c.paths.rootfs)
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", c.id, err)
	}
	defer root.Close()
	socket, err := openIn(root, initDir+"/"+name+".sock", unix.O_PATH, false)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, pod.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", c.id, err)
	}
	defer socket.Close()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unixpacket", fmt.Sprintf("/proc/self/fd/%d", socket.Fd()))
	if errors.Is(err, unix.ECONNREFUSED) {
		return nil, pod.ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", c.id, err)
	}
	s := &Session{container: c, conn: conn.(*net.UnixConn)}
	if c.sessions.open == nil {
		c.sessions.open = map[*Session]struct{}{}
	}
	c.sessions.open[s] = struct{}{}
	return s, nil
}

// ID names a command that Exec started, for Container.Session.
func (s *Session) ID() string { return s.id }

func (s *Session) send(kind byte, data []byte) error {
	_, err := s.conn.Write(append([]byte{kind}, data...))
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, net.ErrClosed) {
		return ErrInterrupted
	}
	return err
}

// Write gives the command input.
func (s *Session) Write(p []byte) (int, error) {
	written := 0
	for len(p) > 0 {
		n := min(len(p), maxInput)
		if err := s.send('i', p[:n]); err != nil {
			return written, err
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

// CloseInput tells the command that its input ends there. A terminal does not
// end.
func (s *Session) CloseInput() error { return s.send('e', nil) }

// Resize changes the size of the command's terminal, in characters.
func (s *Session) Resize(rows, columns uint16) error {
	return s.send('w', fmt.Appendf(nil, "%d %d", rows, columns))
}

// Hangup sends SIGHUP to a command that Exec started, as losing its terminal
// would.
func (s *Session) Hangup() error { return s.send('h', nil) }

// Accepted is how many bytes given to Write have reached the command's side, as
// far as Read has seen. What was written beyond that when the session was
// interrupted has to be written again.
func (s *Session) Accepted() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted
}

// Event is what Read returns: one of Stdout and Stderr, valid until the next
// Read, or the exit status, which comes last.
type Event struct {
	Stdout, Stderr []byte
	Exited         bool
	ExitCode       int
}

// Read waits for what the command says. For the main command there is nothing
// but the end of the connection. The error is ErrInterrupted if the connection
// ends without an exit status.
func (s *Session) Read() (Event, error) {
	for {
		n, err := s.conn.Read(s.buf[:])
		if errors.Is(err, unix.ECONNRESET) {
			continue // the other side left input unread; what it sent is still to be read
		}
		if err != nil || n == 0 {
			return Event{}, ErrInterrupted
		}
		data := s.buf[1:n]
		switch s.buf[0] {
		case 'o':
			return Event{Stdout: data}, nil
		case 'r':
			return Event{Stderr: data}, nil
		case 'x':
			code, err := strconv.ParseUint(string(data), 10, 8)
			if err != nil {
				return Event{}, fmt.Errorf("exit status of a session: %w", err)
			}
			// At the end of the connection the session is gone.
			_, _ = s.conn.Read(s.buf[:])
			return Event{Exited: true, ExitCode: int(code)}, nil
		case 'a':
			accepted, err := strconv.ParseUint(string(bytes.TrimSpace(data)), 10, 64)
			if err != nil {
				return Event{}, fmt.Errorf("acknowledgement of input: %w", err)
			}
			s.mu.Lock()
			s.accepted = accepted
			s.mu.Unlock()
		}
	}
}

// Close ends the connection. The command goes on; see Hangup.
func (s *Session) Close() error {
	s.container.sessions.mu.Lock()
	delete(s.container.sessions.open, s)
	s.container.sessions.mu.Unlock()
	return s.conn.Close()
}

// CloseSessions ends every connection to the pod, which CRIU could not dump,
// and refuses new ones until OpenSessions. It waits until the pod's side is
// closed too. Nothing that was sent is lost: readers get the rest and then
// ErrInterrupted.
func (c *Container) CloseSessions(ctx context.Context) error {
	c.sessions.mu.Lock()
	defer c.sessions.mu.Unlock()
	c.sessions.closed = true
	for s := range c.sessions.open {
		if err := s.interrupt(ctx); err != nil {
			return fmt.Errorf("closing the sessions of %s: %w", c.id, err)
		}
		delete(c.sessions.open, s)
	}
	return nil
}

// OpenSessions allows connections again.
func (c *Container) OpenSessions() {
	c.sessions.mu.Lock()
	c.sessions.closed = false
	c.sessions.mu.Unlock()
}

// interrupt ends the sending side and waits until podinit has closed its own.
func (s *Session) interrupt(ctx context.Context) error {
	err := s.conn.CloseWrite()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ENOTCONN) {
		return nil
	}
	if err != nil {
		return err
	}
	raw, err := s.conn.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var hungUp bool
		err := raw.Control(func(fd uintptr) {
			// POLLHUP: both sides are closed, whatever is left to read. The
			// limit is there to notice ctx.
			poll := []unix.PollFd{{Fd: int32(fd)}}
			_, err := unix.Poll(poll, 20)
			hungUp = err == nil && poll[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
		})
		if err != nil || hungUp {
			return nil // closed by its user meanwhile, or done
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
}

// close ends all connections to a pod that is gone.
func (s *sessions) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for session := range s.open {
		// There is nobody left to tell.
		_ = session.conn.Close()
	}
	s.open = nil
}
