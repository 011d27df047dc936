// Package netconn is what podd's own connections have in common below what they
// carry: they begin as an HTTP/1.1 request to speak another protocol (RFC 9110,
// section 7.8), and they end when the other end is silent for too long. Those to other
// processes of the host are unix sockets in directories, and pass descriptors on.
package netconn

import (
	"errors"
	"fmt"
	"iter"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// Layers yields a connection, the one that it is a layer over, as tls.Conn says
// by NetConn, and so on down to the socket.
func Layers(conn net.Conn) iter.Seq[net.Conn] {
	return func(yield func(net.Conn) bool) {
		for conn := conn; conn != nil && yield(conn); {
			outer, ok := conn.(interface{ NetConn() net.Conn })
			if !ok {
				return
			}
			conn = outer.NetConn()
		}
	}
}

// Unwrap returns the innermost of a connection's layers: the socket.
func Unwrap(conn net.Conn) net.Conn {
	for conn = range Layers(conn) {
	}
	return conn
}

// LimitSilence makes a connection fail whose other end does not take or confirm
// anything for the limit, and find out even when there is nothing to send. It
// does nothing to a connection that is not TCP below.
func LimitSilence(conn net.Conn, limit time.Duration) error {
	tcp, ok := Unwrap(conn).(*net.TCPConn)
	if !ok {
		return nil
	}
	if err := tcp.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: limit / 4, Interval: limit / 4, Count: 3}); err != nil {
		return fmt.Errorf("limiting a connection's silence: %w", err)
	}
	if err := SetTCPOption(tcp, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds())); err != nil {
		return fmt.Errorf("limiting a connection's silence: %w", err)
	}
	return nil
}

// SetTCPOption sets an option of tcp(7). It does nothing to a connection that is
// not TCP below.
func SetTCPOption(conn net.Conn, option, value int) error {
	tcp, ok := Unwrap(conn).(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	var setErr error
	err = raw.Control(func(fd uintptr) { setErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, option, value) })
	return errors.Join(err, setErr)
}
