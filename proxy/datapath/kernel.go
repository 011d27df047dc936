package datapath

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"sync/atomic"

	"podd/pod"
	"podd/vnet/netns"
	"podd/vnet/vxlan"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// kernel makes the single changes, and notes them in the model's devices. It
// counts them, so that a Set that should change nothing can be seen to.
type kernel struct {
	config Config
	conn   *netns.Conn
	// deletions has a connection of its own, because deleting takes long.
	deletions *netns.Conn
	// ipv6 is false where the kernel is built or started without it.
	ipv6    bool
	changes atomic.Uint64
	// repairs, if not nil, takes down what is changed. Datapath.mu guards it.
	repairs *[]Repair
}

// changed counts a change, and takes it down while the kernel is repaired.
func (k *kernel) changed(kind, format string, args ...any) {
	k.changes.Add(1)
	if k.repairs != nil {
		*k.repairs = append(*k.repairs, Repair{Kind: kind, Detail: fmt.Sprintf(format, args...)})
	}
}

// The numbers that mark what is the proxy's own.
const (
	// routeProtocol is the origin the routes name (rtm_protocol), one that
	// no routing daemon in rt_protos has.
	routeProtocol = 112
	// deviceGroup is that of labelled devices, doomedGroup that of those about
	// to be deleted in one go.
	deviceGroup uint32 = 0x706f6401
	doomedGroup uint32 = 0x706f6402
)

func dialKernel(config Config) (*kernel, error) {
	conn, err := netns.Dial("", unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, err
	}
	deletions, err := netns.Dial("")
	if err != nil {
		conn.Close()
		return nil, err
	}
	_, err = os.Stat("/proc/sys/net/ipv6/conf/all")
	return &kernel{config: config, conn: conn, deletions: deletions, ipv6: err == nil}, nil
}

func (k *kernel) close() error { return errors.Join(k.conn.Close(), k.deletions.Close()) }

// createDevice makes the device of a binding and configures it.
func (k *kernel) createDevice(b pod.Binding) (*device, error) {
	k.changed("device", "%s was missing", deviceName(b.Label))
	name := deviceName(b.Label)
	err := vxlan.Create(k.conn, vxlan.Device{
		Name: name, Label: b.Label, Local: k.config.Physical, Remote: b.Physical,
		Port: k.config.Port, MAC: vxlan.ProxyMAC, Group: deviceGroup,
	})
	if err != nil {
		return nil, err
	}
	link, err := k.conn.LinkByName(name)
	if err != nil {
		return nil, fmt.Errorf("looking for device %s: %w", name, err)
	}
	dev := &device{label: b.Label, index: link.Attrs().Index, remote: b.Physical}
	return dev, k.configureDevice(dev)
}

// Attributes of IFLA_AF_SPEC (linux/if_link.h, linux/ip.h) that the library lacks.
const (
	iflaInetConf           = 1
	devconfForwarding      = 1
	devconfAcceptRedirects = 4
	devconfSendRedirects   = 6
	devconfRPFilter        = 8
	iflaInet6AddrGenMode   = 8
	addrGenModeNone        = 1
)

// configureDevice sets what a device does not inherit and brings it up. The
// parameters go by netlink and not through /proc/sys, because that takes a
// third of the time and works from any thread.
func (k *kernel) configureDevice(dev *device) error {
	k.changed("device", "%s was down or not set up", deviceName(dev.label))
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index = int32(dev.index)
	number := func(kind int, value uint32) *nl.RtAttr { return nl.NewRtAttr(kind, nl.Uint32Attr(value)) }
	families := netns.Attribute(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED,
		netns.Attribute(unix.AF_INET|unix.NLA_F_NESTED, netns.Attribute(iflaInetConf|unix.NLA_F_NESTED,
			number(devconfForwarding, 1),
			number(devconfRPFilter, 1),
			// A pod that reaches itself by its public address comes and goes
			// through one device, which is what redirects are sent for.
			number(devconfSendRedirects, 0),
			number(devconfAcceptRedirects, 0),
		)))
	if k.ipv6 {
		// Without an address IPv6 stays silent.
		families.AddChild(netns.Attribute(unix.AF_INET6|unix.NLA_F_NESTED,
			nl.NewRtAttr(iflaInet6AddrGenMode, nl.Uint8Attr(addrGenModeNone))))
	}
	if err := k.conn.Send(unix.RTM_SETLINK, 0, info, families); err != nil {
		return fmt.Errorf("configuring device %s: %w", deviceName(dev.label), err)
	}
	if err := vxlan.SetQueueBytes(k.conn, dev.index, k.config.HoldBytes); err != nil {
		return fmt.Errorf("configuring device %s: %w", deviceName(dev.label), err)
	}
	up := nl.NewIfInfomsg(unix.AF_UNSPEC)
	up.Index, up.Flags, up.Change = int32(dev.index), unix.IFF_UP, unix.IFF_UP
	if err := k.conn.Send(unix.RTM_NEWLINK, 0, up); err != nil {
		return fmt.Errorf("bringing up device %s: %w", deviceName(dev.label), err)
	}
	dev.configured = true
	return nil
}

// setNeighbor holds or opens the way to virtual through a device.
func (k *kernel) setNeighbor(dev *device, virtual netip.Addr, state neighborState) error {
	k.changed("neighbour", "%s on %s was changed", virtual, deviceName(dev.label))
	var err error
	if state == neighborHeld {
		err = vxlan.Hold(k.conn, dev.index, virtual)
	} else {
		err = vxlan.SetNeighbor(k.conn, dev.index, virtual, vxlan.PodMAC)
	}
	if err != nil {
		return fmt.Errorf("device %s: %w", deviceName(dev.label), err)
	}
	dev.virtual, dev.neighbor = virtual, state
	return nil
}

// redirect makes a superseded device send to another's host, with the label of
// that one.
func (k *kernel) redirect(dev, to *device) error {
	k.changed("neighbour", "redirection of %s was missing", deviceName(dev.label))
	if err := k.conn.NeighSet(forwarding(dev.index, redirect{label: to.label, remote: to.remote})); err != nil {
		return fmt.Errorf("redirecting device %s to label %s: %w", deviceName(dev.label), to.label, err)
	}
	dev.redirect = redirect{label: to.label, remote: to.remote}
	return nil
}

func (k *kernel) removeRedirect(dev *device) error {
	k.changed("neighbour", "%s had a redirection", deviceName(dev.label))
	// The kernel finds the entry by its label too, and keeps it without an
	// error when that is missing.
	if err := k.conn.NeighDel(forwarding(dev.index, dev.redirect)); err != nil && !netns.IsNotFound(err) {
		return fmt.Errorf("removing redirection of device %s: %w", deviceName(dev.label), err)
	}
	dev.redirect = redirect{}
	return nil
}

// forwarding is an entry of a device's forwarding table: what goes to the
// pod's MAC address is sent to r.
func forwarding(index int, r redirect) *netlink.Neigh {
	return &netlink.Neigh{
		Family: unix.AF_BRIDGE, LinkIndex: index, Flags: netlink.NTF_SELF, State: netlink.NUD_PERMANENT,
		IP: r.remote.AsSlice(), HardwareAddr: vxlan.PodMAC, VNI: int(r.label),
	}
}

// setRoute makes dev the way to virtual: this is the switch, and the change of
// what the reverse-path filter accepts.
func (k *kernel) setRoute(virtual netip.Addr, dev *device) error {
	k.changed("route", "to %s was missing or changed", virtual)
	if err := k.conn.RouteReplace(route(virtual, dev.index)); err != nil {
		return fmt.Errorf("routing %s through device %s: %w", virtual, deviceName(dev.label), err)
	}
	return nil
}

// detourGateway has a neighbour entry on a device while a queue is let go. It is
// nobody's address: one beside pod.Gateway.
var detourGateway = pod.Gateway.Next()

// detour makes what is sent to virtual wait on a queue of its own, beside the
// one of virtual. The reverse-path filter goes by the device, which stays.
func (k *kernel) detour(virtual netip.Addr, dev *device) error {
	k.changed("route", "to %s had no detour", virtual)
	// A neighbour that was left held is tried all the same.
	dev.detoured = true
	if err := vxlan.Hold(k.conn, dev.index, detourGateway); err != nil {
		return fmt.Errorf("device %s: %w", deviceName(dev.label), err)
	}
	r := route(virtual, dev.index)
	// The kernel allows a gateway in this scope only.
	r.Gw, r.Flags, r.Scope = detourGateway.AsSlice(), int(netlink.FLAG_ONLINK), netlink.SCOPE_UNIVERSE
	if err := k.conn.RouteReplace(r); err != nil {
		return fmt.Errorf("delaying what is sent to %s: %w", virtual, err)
	}
	return nil
}

// endDetour opens the direct way again and then lets what has waited go.
func (k *kernel) endDetour(virtual netip.Addr, dev *device) error {
	if err := k.setRoute(virtual, dev); err != nil {
		return err
	}
	if err := vxlan.SetNeighbor(k.conn, dev.index, detourGateway, vxlan.PodMAC); err != nil {
		return fmt.Errorf("device %s: %w", deviceName(dev.label), err)
	}
	entry := &netlink.Neigh{Family: unix.AF_INET, LinkIndex: dev.index, IP: detourGateway.AsSlice()}
	if err := k.conn.NeighDel(entry); err != nil && !netns.IsNotFound(err) {
		return fmt.Errorf("removing the detour of device %s: %w", deviceName(dev.label), err)
	}
	dev.detoured = false
	return nil
}

func (k *kernel) removeRoute(virtual netip.Addr, dev *device) error {
	k.changed("route", "to %s was added", virtual)
	if err := k.conn.RouteDel(route(virtual, dev.index)); err != nil && !netns.IsNotFound(err) {
		return fmt.Errorf("removing route to %s: %w", virtual, err)
	}
	return nil
}

func route(virtual netip.Addr, index int) *netlink.Route {
	return &netlink.Route{
		LinkIndex: index, Dst: netlink.NewIPNet(virtual.AsSlice()), Scope: netlink.SCOPE_LINK,
		// What the proxy itself sends to a pod comes from the gateway's address.
		Src: pod.Gateway.AsSlice(), Protocol: routeProtocol,
	}
}

// ensureUnreachable refuses packets for virtual addresses that no pod has,
// which would otherwise follow the proxy's default route, and come back for
// their public addresses. The sender is told at once.
func (k *kernel) ensureUnreachable() error {
	wanted := unreachable(k.config.VirtualPrefix)
	if err := k.conn.RouteReplace(wanted); err != nil {
		return fmt.Errorf("making %s unreachable: %w", wanted.Dst, err)
	}
	return k.removeUnreachable(wanted.Dst)
}

// removeUnreachable removes all such routes but that for a prefix, which may be
// nil. An earlier proxy may have had another prefix.
func (k *kernel) removeUnreachable(except *net.IPNet) error {
	routes, err := dump(func() ([]netlink.Route, error) {
		return k.conn.RouteListFiltered(unix.AF_INET,
			&netlink.Route{Protocol: routeProtocol, Type: unix.RTN_UNREACHABLE}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
	})
	if err != nil {
		return fmt.Errorf("listing unreachable prefixes: %w", err)
	}
	for _, r := range routes {
		if except != nil && r.Dst.String() == except.String() {
			continue
		}
		if err := k.conn.RouteDel(&r); err != nil && !netns.IsNotFound(err) {
			return fmt.Errorf("making %s reachable: %w", r.Dst, err)
		}
	}
	return nil
}

// unreachable has the highest metric there is, so that any other route goes first.
func unreachable(prefix netip.Prefix) *netlink.Route {
	return &netlink.Route{
		Dst:  &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), 32)},
		Type: unix.RTN_UNREACHABLE, Priority: math.MaxUint32, Protocol: routeProtocol,
	}
}

// removeDevices deletes devices in one message, which costs hardly more than
// deleting one.
func (k *kernel) removeDevices(devices ...*device) error {
	k.changes.Add(1)
	return deleteGroup(k.deletions, devices)
}

func deleteGroup(c *netns.Conn, devices []*device) error {
	marked := 0
	for _, dev := range devices {
		info := nl.NewIfInfomsg(unix.AF_UNSPEC)
		info.Index = int32(dev.index)
		err := c.Send(unix.RTM_SETLINK, 0, info, nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(doomedGroup)))
		if netns.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("deleting device %s: %w", deviceName(dev.label), err)
		}
		marked++
	}
	if marked == 0 {
		return nil
	}
	err := c.Send(unix.RTM_DELLINK, 0, nl.NewIfInfomsg(unix.AF_UNSPEC), nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(doomedGroup)))
	if err != nil && !netns.IsNotFound(err) {
		return fmt.Errorf("deleting %d devices: %w", marked, err)
	}
	return nil
}

// ensureGateway gives the anchor device the address pods know the proxy by.
func (k *kernel) ensureGateway() error {
	if err := vxlan.EnsureAnchor(k.conn, k.config.Physical, k.config.Port); err != nil {
		return err
	}
	anchor, err := k.conn.LinkByName(vxlan.AnchorName)
	if err != nil {
		return fmt.Errorf("looking for device %s: %w", vxlan.AnchorName, err)
	}
	address := &netlink.Addr{IPNet: &net.IPNet{IP: pod.Gateway.AsSlice(), Mask: net.CIDRMask(32, 32)}, Scope: unix.RT_SCOPE_LINK}
	if err := k.conn.AddrReplace(anchor, address); err != nil {
		return fmt.Errorf("adding the gateway's address %s: %w", pod.Gateway, err)
	}
	return nil
}
