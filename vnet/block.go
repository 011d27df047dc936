package vnet

import (
	"errors"
	"fmt"

	"podd/pod"
	"podd/vnet/netns"
	"podd/vnet/vxlan"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The network of a pod is blocked while its sockets are read or rebuilt, in
// three places.
//
// Loopback: what the pod sends to itself is dropped. While sockets are read one
// after the other, bytes that go from one to the next would be lost, or be
// there twice; and while they are rebuilt, what one has yet to send would be
// answered with a reset, because the other is not there.
//
// Ingress: a routing rule ahead of all others drops what arrives through the
// NIC. TCP's early demultiplexing does not get around it, although it takes
// the route of an established connection from the socket: changing the rules
// makes the kernel distrust every route it has cached, and no packet gets far
// enough to have another one cached. Adding or removing a rule takes about
// 10 us; attaching a dropping XDP program to the NIC took 16 ms.
//
// Egress: the gateway's neighbour entry is held, so the kernel queues what the
// sockets retransmit or, after a restore, still had to send. Unblock sends the
// queue, Detach drops it.
const (
	blockPriority = 0
	localPriority = 1
)

// blockRule drops whatever arrives through the NIC.
func blockRule() *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Priority, r.IifName, r.Type = unix.AF_INET, blockPriority, NIC, unix.RTN_BLACKHOLE
	return r
}

// makeRoomForBlock moves the rule for local addresses, which the kernel puts
// first, behind the place of the blocking rule.
func makeRoomForBlock(c *netns.Conn) error {
	local := netlink.NewRule()
	local.Family, local.Priority, local.Table = unix.AF_INET, localPriority, unix.RT_TABLE_LOCAL
	if err := c.RuleAdd(local); err != nil {
		return fmt.Errorf("adding routing rule for local addresses: %w", err)
	}
	local.Priority = 0
	if err := c.RuleDel(local); err != nil {
		return fmt.Errorf("removing first routing rule: %w", err)
	}
	return nil
}

// blockIngress keeps everything from reaching the pod's sockets, from the NIC
// and from the pod itself.
func blockIngress(c *netns.Conn) error {
	if err := c.RuleAdd(blockRule()); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("adding blocking rule: %w", err)
	}
	return blockLoopback(c)
}

// Block keeps everything from reaching the pod's sockets, and anything they
// send from leaving; of what the pod sends to itself only CRIU's own packets
// pass. It is idempotent.
func (n *Network) Block(path string) error {
	c, index, err := dialNIC(path)
	if err != nil {
		return fmt.Errorf("blocking network: %w", err)
	}
	defer c.Close()
	if err := blockIngress(c); err != nil {
		return fmt.Errorf("blocking network %s: %w", path, err)
	}
	if err := vxlan.Hold(c, index, pod.Gateway); err != nil {
		return fmt.Errorf("blocking network %s: %w", path, err)
	}
	return nil
}

// Admit lifts one part of Block: packets from the NIC reach the pod's sockets,
// and what these answer is still kept. A restored pod is ready for packets
// before it runs, and the proxy may let them go the moment the move is
// committed.
func (n *Network) Admit(path string) error {
	c, _, err := dialNIC(path)
	if err != nil {
		return fmt.Errorf("admitting packets: %w", err)
	}
	defer c.Close()
	if err := admit(c); err != nil {
		return fmt.Errorf("admitting packets to %s: %w", path, err)
	}
	return nil
}

func admit(c *netns.Conn) error {
	if err := c.RuleDel(blockRule()); err != nil && !netns.IsNotFound(err) {
		return fmt.Errorf("removing blocking rule: %w", err)
	}
	return nil
}

// FreeLoopback lifts another part of Block: what the pod sends to itself arrives.
func (n *Network) FreeLoopback(path string) error {
	c, _, err := dialNIC(path)
	if err != nil {
		return fmt.Errorf("unblocking the loopback device: %w", err)
	}
	defer c.Close()
	if err := freeLoopback(c); err != nil {
		return fmt.Errorf("unblocking network %s: %w", path, err)
	}
	return nil
}

// Unblock undoes Block and sends what the kernel has queued meanwhile. It is
// idempotent.
func (n *Network) Unblock(path string) error {
	c, index, err := dialNIC(path)
	if err != nil {
		return fmt.Errorf("unblocking network: %w", err)
	}
	defer c.Close()
	if err := freeLoopback(c); err != nil {
		return fmt.Errorf("unblocking network %s: %w", path, err)
	}
	// Ingress before egress: the queue will be answered.
	if err := admit(c); err != nil {
		return fmt.Errorf("unblocking network %s: %w", path, err)
	}
	if err := vxlan.SetNeighbor(c, index, pod.Gateway, vxlan.ProxyMAC); err != nil {
		return fmt.Errorf("unblocking network %s: %w", path, err)
	}
	return nil
}

// Blocked reports whether the network at path is blocked, wholly or in part.
func (n *Network) Blocked(path string) (bool, error) {
	c, index, err := dialNIC(path)
	if err != nil {
		return false, fmt.Errorf("reading network block: %w", err)
	}
	defer c.Close()
	if blocked, err := loopbackBlocked(c); err != nil {
		return false, fmt.Errorf("reading network block %s: %w", path, err)
	} else if blocked {
		return true, nil
	}
	rules, err := c.RuleList(unix.AF_INET)
	if err != nil {
		return false, fmt.Errorf("reading network block %s: listing routing rules: %w", path, err)
	}
	for _, r := range rules {
		if r.IifName == NIC && r.Type == unix.RTN_BLACKHOLE {
			return true, nil
		}
	}
	neighbors, err := c.NeighList(index, unix.AF_INET)
	if err != nil {
		return false, fmt.Errorf("reading network block %s: listing neighbours: %w", path, err)
	}
	for _, neighbor := range neighbors {
		if neighbor.IP.Equal(pod.Gateway.AsSlice()) && neighbor.State != netlink.NUD_PERMANENT {
			return true, nil
		}
	}
	return false, nil
}

// dialNIC connects to the namespace at path and returns its NIC's index.
func dialNIC(path string) (*netns.Conn, int, error) {
	c, err := netns.Dial(path, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, 0, err
	}
	nic, err := c.LinkByName(NIC)
	if err != nil {
		c.Close()
		return nil, 0, fmt.Errorf("looking for %s in %s: %w", NIC, path, err)
	}
	return c, nic.Attrs().Index, nil
}
