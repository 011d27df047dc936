package vnet

import (
	"fmt"

	"podd/vnet/netns"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// CountUnaccepted returns how many TCP connections wait for a program of the
// pod to accept them. CRIU can't dump a listener while it has any.
func (n *Network) CountUnaccepted(path string) (int, error) {
	c, err := netns.Dial(path, unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, fmt.Errorf("counting connections to be accepted: %w", err)
	}
	defer c.Close()
	count := 0
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := c.SocketDiagTCP(family)
		if err != nil {
			return 0, fmt.Errorf("counting connections to be accepted in %s: %w", path, err)
		}
		for _, s := range sockets {
			// For a listener the receive queue is that of connections;
			// see sock_diag(7).
			if s.State == netlink.TCP_LISTEN {
				count += int(s.RQueue)
			}
		}
	}
	return count, nil
}
