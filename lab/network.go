package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podd/vnet/netns"
)

// netnsDir is where ip-netns(8) keeps the files of network namespaces.
const netnsDir = "/run/netns"

// uplink is the name of a node's one link. Not eth0: kernels before 6.15
// refuse to make a device of a name that the maker's own namespace has, even
// if it is to appear in another one, as the NIC of a pod does.
const uplink = "uplink"

// buildNetwork makes the namespaces and links them. Every link's two ends are
// born in their namespaces; the machine's own never has one.
func (l *Lab) buildNetwork() error {
	if err := shareNetnsDir(); err != nil {
		return err
	}
	for _, node := range l.Nodes() {
		if err := netns.Create(l.Namespace(node), setUpNamespace); err != nil {
			return fmt.Errorf("making node %s: %w", node, err)
		}
	}
	rate, err := parseRate(l.LinkRate)
	if err != nil {
		return err
	}
	for _, node := range l.Nodes()[1:] {
		if err := l.link(node, rate); err != nil {
			return fmt.Errorf("linking node %s to the router: %w", node, err)
		}
	}
	err = netns.Do(l.Namespace(Router), func() error {
		if err := netns.SetSysctls(netns.Sysctl{Name: "net/ipv4/ip_forward", Value: "1"}); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(PublicPrefix), Gw: l.Address(Proxy).AsSlice()})
	})
	if err != nil {
		return fmt.Errorf("routing %s to the proxy: %w", PublicPrefix, err)
	}
	return nil
}

// shareNetnsDir makes netnsDir a shared mount of its own, as ip-netns does
// before it adds the first namespace. If it were left to the next ip-netns,
// that would put a second mount over each of ours.
func shareNetnsDir() error {
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return fmt.Errorf("making %s: %w", netnsDir, err)
	}
	err := unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) { // no mount point yet
		if err = unix.Mount(netnsDir, netnsDir, "none", unix.MS_BIND|unix.MS_REC, ""); err == nil {
			err = unix.Mount("", netnsDir, "none", unix.MS_SHARED|unix.MS_REC, "")
		}
	}
	if err != nil {
		return fmt.Errorf("sharing the mounts of %s: %w", netnsDir, err)
	}
	return nil
}

// setUpNamespace prepares the thread's network namespace, which is new.
func setUpNamespace() error {
	err := netns.SetSysctls(
		// Duplicate address detection would delay a link's first packets.
		netns.Sysctl{Name: "net/ipv6/conf/default/disable_ipv6", Value: "1", Optional: true},
		// Any user's ping works, also from a shell in a node.
		netns.Sysctl{Name: "net/ipv4/ping_group_range", Value: "0 2147483647"},
	)
	if err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("looking for lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bringing up lo: %w", err)
	}
	return nil
}

// link joins a node to the router by a veth pair whose end at the router has
// the node's name. rate is in bytes a second, 0 for no limit.
func (l *Lab) link(node string, rate uint64) error {
	ns, err := netns.Open(l.Namespace(node))
	if err != nil {
		return err
	}
	defer ns.Close()
	address := l.Address(node)
	err = netns.Do(l.Namespace(Router), func() error {
		veth := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: node}, PeerName: uplink, PeerNamespace: netlink.NsFd(int(ns.Fd())),
		}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("adding veth: %w", err)
		}
		return setUpLink(node, gateway(address), rate)
	})
	if err != nil {
		return err
	}
	return netns.DoIn(ns, func() error {
		if err := setUpLink(uplink, address, rate); err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{Gw: gateway(address).AsSlice()}); err != nil {
			return fmt.Errorf("adding default route: %w", err)
		}
		return nil
	})
}

// setUpLink gives a device in the thread's namespace its address and rate.
func setUpLink(name string, address netip.Addr, rate uint64) error {
	device, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("looking for %s: %w", name, err)
	}
	if err := netlink.AddrAdd(device, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(address, subnetBits))}); err != nil {
		return fmt.Errorf("adding address %s to %s: %w", address, name, err)
	}
	if rate != 0 {
		if err := limitRate(device, rate); err != nil {
			return fmt.Errorf("limiting the rate of %s: %w", name, err)
		}
	}
	if err := netlink.LinkSetUp(device); err != nil {
		return fmt.Errorf("bringing up %s: %w", name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// namespaceFiles lists the files of lab namespaces, whatever lab made them.
func namespaceFiles() ([]string, error) {
	files, err := filepath.Glob(filepath.Join(netnsDir, place.prefix+"*"))
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", netnsDir, err)
	}
	return files, nil
}
