package checkpoint

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// pageSocket is podd's end of the socket on which CRIU sends pages. CRIU says of every piece of memory
// first where it is and then what: some 240 pieces of a small desktop. If podd waited for each, it
// would be woken each time, on CRIU's processor and in its place. So it is not: it looks now and then,
// and when the library in CRIU rings because CRIU waits.
type pageSocket struct {
	file *os.File
	// bell is an eventfd that the library writes to.
	bell *os.File
	// rung says that there is a library that does.
	rung bool
}

const (
	// pageSocketPause is how long podd leaves CRIU alone.
	pageSocketPause = 2 * time.Millisecond
	// pageSocketBuffer, in bytes, is more than CRIU can write meanwhile; the kernel doubles it. A
	// small piece takes a kilobyte of it.
	pageSocketBuffer = 4 << 20
)

// newPageSocket returns both ends.
func newPageSocket() (ours *pageSocket, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("creating a socket for CRIU's pages: %w", err)
	}
	// A blocking descriptor is not watched by the runtime, which would be woken by each piece, too.
	ours, theirs = &pageSocket{file: os.NewFile(uintptr(fds[0]), "pages")}, os.NewFile(uintptr(fds[1]), "pages-peer")
	err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fds[1], unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, pageSocketBuffer))
	if err == nil {
		var bell int
		bell, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
		ours.bell = os.NewFile(uintptr(bell), "bell")
		err = os.NewSyscallError("eventfd", err)
	}
	if err != nil {
		theirs.Close()
		ours.Close()
		return nil, nil, fmt.Errorf("creating a socket for CRIU's pages: %w", err)
	}
	return ours, theirs, nil
}

// Read returns what is there, as soon as it is looked for and there is something.
func (s *pageSocket) Read(b []byte) (n int, err error) {
	for {
		err := s.control(func(fd, bell int) (err error) {
			if n, _, err = unix.Recvfrom(fd, b, unix.MSG_DONTWAIT); err == unix.EAGAIN {
				return s.wait(fd, bell)
			}
			if err == nil && n == 0 && len(b) > 0 {
				err = io.EOF
			}
			return err
		})
		if err == nil && n > 0 || err == io.EOF {
			return n, err
		}
		if err != nil && err != unix.EINTR {
			return 0, fmt.Errorf("reading CRIU's page socket: %w", err)
		}
	}
}

// wait waits until it is time to look again, or the socket has come to its end.
func (s *pageSocket) wait(fd, bell int) error {
	polled := []unix.PollFd{{Fd: int32(fd)}, {Fd: int32(bell), Events: unix.POLLIN}}
	pause := int(pageSocketPause.Milliseconds())
	if !s.rung {
		polled[0].Events, pause = unix.POLLIN, -1
	}
	if _, err := unix.Poll(polled, pause); err != nil {
		return err
	}
	if polled[1].Revents != 0 {
		if _, err := unix.Read(bell, make([]byte, 8)); err != nil {
			return err
		}
	}
	return nil
}

// control calls f with the descriptors, which are not closed meanwhile.
func (s *pageSocket) control(f func(fd, bell int) error) error {
	socket, err := s.file.SyscallConn()
	if err != nil {
		return err
	}
	bell, err := s.bell.SyscallConn()
	if err != nil {
		return err
	}
	var failed, closed error
	err = socket.Control(func(fd uintptr) {
		closed = bell.Control(func(bell uintptr) { failed = f(int(fd), int(bell)) })
	})
	return cmp.Or(err, closed, failed)
}

func (s *pageSocket) Write(b []byte) (int, error) { return s.file.Write(b) }

// Close lets CRIU know, and who reads. It may be called more than once.
func (s *pageSocket) Close() error {
	// It fails if that was done, or if CRIU is gone.
	_ = s.control(func(fd, _ int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) })
	return errors.Join(s.file.Close(), s.bell.Close())
}
