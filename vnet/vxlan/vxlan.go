// Package vxlan makes the labelled devices both ends of a pod's traffic are
// built from: VXLAN (RFC 7348) devices whose network identifier is the label.
// The two ends agree on everything that is fixed here and on nothing else.
package vxlan

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"podd/pod"
	"podd/vnet/netns"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

const (
	// DefaultPort is the UDP port IANA gave VXLAN.
	DefaultPort = 4789
	// Overhead is what the outer headers add to a packet, in bytes: Ethernet
	// 14, IPv4 20, UDP 8, VXLAN 8.
	Overhead = 50
	// MTU is that of every labelled device, for an underlay of 1500 bytes. It
	// is the same everywhere, so it does not change under a pod that moves.
	MTU = 1500 - Overhead
)

// One fixed pair of MAC addresses serves every pod, because a labelled device
// is a point-to-point link. They must differ: VXLAN drops a frame that carries
// the receiver's own address as its source.
var (
	ProxyMAC = net.HardwareAddr{0x02, 0x00, 0x64, 0x00, 0x00, 0x01}
	PodMAC   = net.HardwareAddr{0x02, 0x00, 0x64, 0x00, 0x00, 0x02}
)

// AnchorName is the name of the anchor device.
const AnchorName = "podd-anchor"

// Device describes one labelled device.
type Device struct {
	Name  string
	Label pod.Label
	// Local and Remote are the outer addresses, both IPv4.
	Local, Remote netip.Addr
	// Port is the outer UDP destination port.
	Port uint16
	MAC  net.HardwareAddr
	// Group is the kernel's device group, for deleting many at once.
	Group uint32
	// Namespace is a descriptor of the namespace the device appears in, or 0
	// for the connection's own. Its UDP socket stays in the connection's.
	Namespace int
	// Up brings the device up in the same message.
	Up bool
}

// Create makes the device with a single message. The error wraps unix.EEXIST
// when the name, or the label in the namespace of c, is taken.
//
// The message is built by hand: the library leaves IFLA_VXLAN_UDP_CSUM out
// when it is false, and the kernel takes that for true. The outer checksum
// protects nothing the inner ones don't, and costs a tenth of the throughput.
func Create(c *netns.Conn, d Device) error {
	if !d.Local.Is4() || !d.Remote.IsValid() && d.Label != pod.AnchorLabel {
		return fmt.Errorf("creating device %s: %w: label %s needs IPv4 outer addresses, not %s and %s", d.Name, pod.ErrInvalid, d.Label, d.Local, d.Remote)
	}
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	if d.Up {
		info.Flags, info.Change = unix.IFF_UP, unix.IFF_UP
	}
	data := netns.Attribute(nl.IFLA_INFO_DATA,
		nl.NewRtAttr(nl.IFLA_VXLAN_ID, nl.Uint32Attr(uint32(d.Label))),
		nl.NewRtAttr(nl.IFLA_VXLAN_LOCAL, d.Local.AsSlice()),
		nl.NewRtAttr(nl.IFLA_VXLAN_PORT, binary.BigEndian.AppendUint16(nil, d.Port)),
		nl.NewRtAttr(nl.IFLA_VXLAN_LEARNING, nl.Uint8Attr(0)),
		nl.NewRtAttr(nl.IFLA_VXLAN_UDP_CSUM, nl.Uint8Attr(0)),
	)
	if d.Remote.IsValid() {
		data.AddRtAttr(nl.IFLA_VXLAN_GROUP, d.Remote.AsSlice())
	}
	parts := []nl.NetlinkRequestData{
		info,
		nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(d.Name)),
		nl.NewRtAttr(unix.IFLA_ADDRESS, d.MAC),
		nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(MTU)),
		nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(d.Group)),
		netns.Attribute(unix.IFLA_LINKINFO,
			nl.NewRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vxlan")), data),
	}
	if d.Namespace != 0 {
		parts = append(parts, nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(d.Namespace))))
	}
	if err := c.Send(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, parts...); err != nil {
		return fmt.Errorf("creating device %s with label %s: %w", d.Name, d.Label, err)
	}
	return nil
}

// Matches reports whether link is d as far as the outer packet goes.
func (d Device) Matches(link netlink.Link) bool {
	v, ok := link.(*netlink.Vxlan)
	if !ok {
		return false
	}
	local, _ := netip.AddrFromSlice(v.SrcAddr)
	remote, _ := netip.AddrFromSlice(v.Group)
	return pod.Label(v.VxlanId) == d.Label && local.Unmap() == d.Local.Unmap() && remote.Unmap() == d.Remote.Unmap() && uint16(v.Port) == d.Port
}

// EnsureAnchor brings up the device that keeps the UDP port open when no pod
// is left, so that a packet with an old label meets silence and not an ICMP
// port unreachable. It listens to pod.AnchorLabel, which nobody sends.
func EnsureAnchor(c *netns.Conn, local netip.Addr, port uint16) error {
	want := anchor(local, port)
	link, err := c.LinkByName(AnchorName)
	switch {
	case err == nil && want.Matches(link):
		if err := c.LinkSetUp(link); err != nil {
			return fmt.Errorf("bringing up device %s: %w", AnchorName, err)
		}
		return nil
	case err == nil:
		// The machine's address or the port has changed.
		if err := c.LinkDel(link); err != nil && !netns.IsNotFound(err) {
			return fmt.Errorf("replacing device %s: %w", AnchorName, err)
		}
	case !netns.IsNotFound(err):
		return fmt.Errorf("looking for device %s: %w", AnchorName, err)
	}
	return Create(c, want)
}

func anchor(local netip.Addr, port uint16) Device {
	return Device{Name: AnchorName, Label: pod.AnchorLabel, Local: local, Port: port, MAC: ProxyMAC, Up: true}
}

// HasAnchor reports whether the device that EnsureAnchor wants is there and up.
func HasAnchor(c *netns.Conn, local netip.Addr, port uint16) (bool, error) {
	link, err := c.LinkByName(AnchorName)
	if netns.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for device %s: %w", AnchorName, err)
	}
	return anchor(local, port).Matches(link) && link.Attrs().Flags&net.FlagUp != 0, nil
}

// RemoveAnchor deletes the anchor device, if there is one.
func RemoveAnchor(c *netns.Conn) error {
	link, err := c.LinkByName(AnchorName)
	if err == nil {
		err = c.LinkDel(link)
	}
	if err != nil && !netns.IsNotFound(err) {
		return fmt.Errorf("removing device %s: %w", AnchorName, err)
	}
	return nil
}
