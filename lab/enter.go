package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"

	"podd/vnet/netns"
)

// Command returns a command that runs in a node's network namespace, and in
// nothing else of it: unlike `ip netns exec` it leaves /sys, and so cgroups,
// as they are. The process is the program's own from the start, so signals and
// exit status are too; a program that isn't found ends with 127.
func (l *Lab) Command(node string, argv ...string) *exec.Cmd {
	return exec.Command("nsenter", l.nsenter(node, argv)[1:]...)
}

// CommandContext is Command with exec.CommandContext.
func (l *Lab) CommandContext(ctx context.Context, node string, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", l.nsenter(node, argv)[1:]...)
}

func (l *Lab) nsenter(node string, argv []string) []string {
	return append([]string{"nsenter", "--net=" + l.Namespace(node), "--"}, argv...)
}

// Exec replaces this process by a program in a node's network namespace, for
// `podctl lab exec`: terminal, signals and exit status need no forwarding. It
// returns only on failure.
func (l *Lab) Exec(node string, argv []string) error {
	if err := l.checkNode(node); err != nil {
		return err
	}
	program, err := exec.LookPath("nsenter")
	if err != nil {
		return fmt.Errorf("entering node %s: %w (Debian's package util-linux has it)", node, err)
	}
	if err := unix.Exec(program, l.nsenter(node, argv), os.Environ()); err != nil {
		return fmt.Errorf("entering node %s: %w", node, err)
	}
	return nil
}

// Do runs fn on a thread that is in a node's network namespace: sockets that
// it opens stay there. Goroutines that fn starts are not in it.
func (l *Lab) Do(node string, fn func() error) error {
	if err := l.checkNode(node); err != nil {
		return err
	}
	return netns.Do(l.Namespace(node), fn)
}

// Dial connects from a node. The address must be numeric: names would be
// looked up from the machine's own namespace.
func (l *Lab) Dial(ctx context.Context, node, network, address string) (conn net.Conn, err error) {
	err = l.Do(node, func() error {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens for streams at a node.
func (l *Lab) Listen(ctx context.Context, node, network, address string) (listener net.Listener, err error) {
	err = l.Do(node, func() error {
		var c net.ListenConfig
		listener, err = c.Listen(ctx, network, address)
		return err
	})
	return listener, err
}

// ListenPacket opens a datagram socket at a node.
func (l *Lab) ListenPacket(ctx context.Context, node, network, address string) (conn net.PacketConn, err error) {
	err = l.Do(node, func() error {
		var c net.ListenConfig
		conn, err = c.ListenPacket(ctx, network, address)
		return err
	})
	return conn, err
}
