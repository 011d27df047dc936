package daemon

import (
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

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
	raw, err := tcp.SyscallConn()
	if err != nil {
		return fmt.Errorf("limiting a connection's silence: %w", err)
	}
	var setErr error
	err = raw.Control(func(fd uintptr) {
		setErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
	})
	if err := errors.Join(err, setErr); err != nil {
		return fmt.Errorf("limiting a connection's silence: %w", err)
	}
	return nil
}
