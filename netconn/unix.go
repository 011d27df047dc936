package netconn

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// socketIn is a name for a socket in an open directory that is short enough for a
// socket's address, whatever the directory's: that has room for 107 bytes (unix(7)).
func socketIn(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// ListenIn makes a unix socket in a directory. It stays there when the listener is
// closed.
func ListenIn(network string, dir *os.File, name string) (*net.UnixListener, error) {
	l, err := net.ListenUnix(network, &net.UnixAddr{Name: socketIn(dir, name), Net: network})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

// DialIn connects to a unix socket in a directory.
func DialIn(ctx context.Context, network string, dir *os.File, name string) (*net.UnixConn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, network, socketIn(dir, name))
	if err != nil {
		return nil, err
	}
	return conn.(*net.UnixConn), nil
}

// Descriptors returns those that came with a message of a unix socket: oob is what
// net.UnixConn.ReadMsgUnix has written, which sees to it that they are closed by execve(2).
// They are the caller's.
func Descriptors(oob []byte) (fds []int, err error) {
	controls, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("reading passed descriptors: %w", err)
	}
	for _, c := range controls {
		passed, err := unix.ParseUnixRights(&c)
		if err != nil {
			closeAll(fds)
			return nil, fmt.Errorf("reading passed descriptors: %w", err)
		}
		fds = append(fds, passed...)
	}
	return fds, nil
}

// PassedFile returns the first of Descriptors as a file of that name, nil if there is
// none, and closes all others.
func PassedFile(oob []byte, name string) (*os.File, error) {
	fds, err := Descriptors(oob)
	if err != nil || len(fds) == 0 {
		return nil, err
	}
	closeAll(fds[1:])
	return os.NewFile(uintptr(fds[0]), name), nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// Duplicate returns another descriptor of an open file, and leaves its mode alone, which
// File.Fd does not: whoever has it open, too, shares that.
func Duplicate(file *os.File) (*os.File, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	err = raw.Control(func(from uintptr) { fd, dupErr = unix.FcntlInt(from, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(err, dupErr); err != nil {
		return nil, fmt.Errorf("duplicating a descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}

// Peer asks the kernel who made the other end of a unix socket, by this process's
// numbers (SO_PEERCRED).
func Peer(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("asking who is at a unix socket: %w", err)
	}
	var peer *unix.Ucred
	var peerErr error
	err = raw.Control(func(fd uintptr) { peer, peerErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, peerErr); err != nil {
		return nil, fmt.Errorf("asking who is at a unix socket: %w", err)
	}
	return peer, nil
}
