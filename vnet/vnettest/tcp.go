package vnettest

import (
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"podd/vnet/netns"

	"golang.org/x/sys/unix"
)

// Timeout bounds every read, write and connect of a test. It is long, because
// the machine may be busy: a test that passes never waits for it.
const Timeout = 20 * time.Second

// Listen opens a TCP listener in the namespace at path.
func Listen(t testing.TB, path, address string) *net.TCPListener {
	t.Helper()
	var listener net.Listener
	Do(t, path, func() (err error) {
		listener, err = net.Listen("tcp4", address)
		return err
	})
	t.Cleanup(func() { listener.Close() })
	return listener.(*net.TCPListener)
}

// Serve answers connections to address in the namespace at path: it sends
// greeting and then everything back that it gets.
func Serve(t testing.TB, path, address, greeting string) {
	t.Helper()
	listener := Listen(t, path, address)
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	t.Cleanup(func() { listener.Close() })
	go func() {
		defer close(done)
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			// Ends when the client closes, at the latest with the test.
			t.Cleanup(func() { c.Close() })
			go func() {
				defer c.Close()
				if _, err := io.WriteString(c, greeting); err == nil {
					io.Copy(c, c)
				}
			}()
		}
	}()
}

// TryDial connects from the namespace at path.
func TryDial(path, address string, timeout time.Duration) (*net.TCPConn, error) {
	var c net.Conn
	err := netns.Do(path, func() (err error) {
		c, err = net.DialTimeout("tcp4", address, timeout)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// Dial connects from the namespace at path and sets the deadline of the test.
func Dial(t testing.TB, path, address string) *net.TCPConn {
	t.Helper()
	c, err := TryDial(path, address, Timeout)
	if err != nil {
		t.Fatalf("connecting to %s: %v", address, err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * Timeout))
	return c
}

// ExpectGreeting reads what Serve sends first.
func ExpectGreeting(t testing.TB, c net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatalf("reading greeting: %v", err)
	}
	if string(got) != want {
		t.Fatalf("greeting is %q, want %q", got, want)
	}
}

// Echo sends message through a connection that Serve answers and compares
// what comes back.
func Echo(c net.Conn, message string) error {
	if _, err := io.WriteString(c, message); err != nil {
		return err
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if string(got) != message {
		return fmt.Errorf("sent %q, got back %q", message, got)
	}
	return nil
}

// TCPInfo returns the kernel's statistics of a connection.
func TCPInfo(t testing.TB, c *net.TCPConn) *unix.TCPInfo {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	var infoErr error
	if err := raw.Control(func(fd uintptr) {
		info, infoErr = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); err != nil {
		t.Fatal(err)
	}
	if infoErr != nil {
		t.Fatal(infoErr)
	}
	return info
}
