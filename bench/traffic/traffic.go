// Package traffic measures a way through the network: how much it carries, how
// long it takes, and how many connections and datagrams a second. The server at
// its end is C and the client makes system calls that block, so that what is
// measured is the way and not a language's scheduler.
package traffic

import (
	"context"
	_ "embed"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

//go:embed server/server.c
var source string

// Port is the first of the server's ports; server.c says what they are for.
const Port = 7100

const (
	echoPort = iota
	sinkPort
	sourcePort
	answerPort
	countPort
	// Ports is how many ports the server listens on.
	Ports
)

// Build compiles the server into a directory and returns its path.
func Build(ctx context.Context, dir string) (string, error) {
	file, program := filepath.Join(dir, "traffic.c"), filepath.Join(dir, "traffic")
	if err := os.WriteFile(file, []byte(source), 0o644); err != nil {
		return "", fmt.Errorf("building the traffic server: %w", err)
	}
	if out, err := exec.CommandContext(ctx, "cc", "-static", "-O2", "-pthread", "-o", program, file).CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the traffic server: %w\n%s", err, out)
	}
	return program, nil
}

// Client measures the way to one server.
type Client struct {
	// Within runs a function on a thread in the client's network namespace.
	Within func(func() error) error
	// Server is its address, Base the first of its ports.
	Server netip.Addr
	Base   uint16
}

// patience bounds every system call of a client.
const patience = 5 * time.Second

// socket is a blocking socket.
type socket int

// dial opens a socket to one of the server's ports. It must run within the
// client's network namespace.
func (c *Client) dial(kind, port int) (socket, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening a socket: %w", err)
	}
	s := socket(fd)
	limit := unix.NsecToTimeval(patience.Nanoseconds())
	for _, option := range []int{unix.SO_SNDTIMEO, unix.SO_RCVTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &limit); err != nil {
			s.close()
			return -1, fmt.Errorf("bounding a socket's patience: %w", err)
		}
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Addr: c.Server.As4(), Port: int(c.Base) + port})
	if err == unix.EINTR {
		err = s.connected()
	}
	if err != nil {
		s.close()
		return -1, fmt.Errorf("connecting to %s, port %d: %w", c.Server, int(c.Base)+port, err)
	}
	return s, nil
}

func (s socket) close() { unix.Close(int(s)) }

// connected waits for the end of a connect that a signal has interrupted, as
// those of Go's scheduler do where there is a limit of time.
func (s socket) connected() error {
	poll := []unix.PollFd{{Fd: int32(s), Events: unix.POLLOUT}}
	n, err := retry(func() (int, error) { return unix.Poll(poll, int(patience.Milliseconds())) })
	if err != nil {
		return err
	}
	if n == 0 {
		return unix.ETIMEDOUT
	}
	code, err := unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 {
		err = unix.Errno(code)
	}
	return err
}

// retry makes a system call again when a signal has interrupted it.
func retry(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); err != unix.EINTR {
			return n, err
		}
	}
}

// read fills b.
func (s socket) read(b []byte) error {
	for len(b) > 0 {
		n, err := retry(func() (int, error) { return unix.Read(int(s), b) })
		if err != nil {
			return fmt.Errorf("receiving: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("receiving: the server has closed")
		}
		b = b[n:]
	}
	return nil
}

// write sends all of b.
func (s socket) write(b []byte) error {
	for len(b) > 0 {
		n, err := retry(func() (int, error) { return unix.Write(int(s), b) })
		if err != nil {
			return fmt.Errorf("sending: %w", err)
		}
		b = b[n:]
	}
	return nil
}
