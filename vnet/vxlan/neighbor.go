package vxlan

import (
	"fmt"
	"net"
	"net/netip"

	"podd/vnet/netns"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// HoldQueueBytes is how much a held neighbour queues at most by default. The
// kernel counts what a packet occupies, about 3.5 KB whatever its length, so
// these are some 1,200 packets: a quarter of a second at 5,000 packets/s, and
// more than all the congestion windows of a pod's clients in an ordinary freeze.
// The kernel's own default of 208 KiB holds 60. A hundred pods held at once take
// 400 MiB of kernel memory at the worst.
//
// What does not fit pushes out the oldest packet, in silence: TCP sends it
// again, and finds the newer ones delivered. The kernel does not tell how much
// a neighbour queues.
const HoldQueueBytes = 4 << 20

// SetNeighbor makes mac the permanent link-layer address of ip on the device
// with the given index. Whatever Hold has queued for ip is sent first, in order.
func SetNeighbor(c *netns.Conn, index int, ip netip.Addr, mac net.HardwareAddr) error {
	err := c.NeighSet(&netlink.Neigh{
		Family: unix.AF_INET, LinkIndex: index, IP: ip.AsSlice(),
		HardwareAddr: mac, State: netlink.NUD_PERMANENT,
	})
	if err != nil {
		return fmt.Errorf("setting neighbour %s: %w", ip, err)
	}
	return nil
}

// Hold makes the kernel queue whatever is to be sent to ip through the device
// with the given index. A neighbour that is put into the state INCOMPLETE by
// hand is never asked for and never times out, so it stays held until
// SetNeighbor; packets that exceed the queue push out the oldest.
func Hold(c *netns.Conn, index int, ip netip.Addr) error {
	err := c.NeighSet(&netlink.Neigh{
		Family: unix.AF_INET, LinkIndex: index, IP: ip.AsSlice(), State: netlink.NUD_INCOMPLETE,
	})
	if err != nil {
		return fmt.Errorf("holding neighbour %s: %w", ip, err)
	}
	return nil
}

// Attributes of RTM_SETNEIGHTBL (linux/neighbour.h) that the library lacks.
const (
	ndtaName           = 1
	ndtaParms          = 6
	ndtpaIfindex       = 1
	ndtpaQueueLenBytes = 16
)

// neighborTable is struct ndtmsg (linux/neighbour.h).
type neighborTable struct{ family byte }

func (t neighborTable) Len() int          { return 4 }
func (t neighborTable) Serialize() []byte { return []byte{t.family, 0, 0, 0} }

// SetQueueBytes sets how many bytes a held neighbour of the device with the
// given index queues (the sysctl neigh/DEVICE/unres_qlen_bytes, which in a
// namespace other than the first has no default to inherit).
func SetQueueBytes(c *netns.Conn, index, bytes int) error {
	err := c.Send(unix.RTM_SETNEIGHTBL, unix.NLM_F_REPLACE,
		neighborTable{family: unix.AF_INET},
		nl.NewRtAttr(ndtaName, nl.ZeroTerminated("arp_cache")),
		netns.Attribute(ndtaParms|unix.NLA_F_NESTED,
			nl.NewRtAttr(ndtpaIfindex, nl.Uint32Attr(uint32(index))),
			nl.NewRtAttr(ndtpaQueueLenBytes, nl.Uint32Attr(uint32(bytes)))),
	)
	if err != nil {
		return fmt.Errorf("setting the neighbour queue to %d bytes: %w", bytes, err)
	}
	return nil
}
