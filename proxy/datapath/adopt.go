package datapath

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"podd/pod"
	"podd/vnet/netns"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// synchronize prepares the kernel and makes the model equal to it.
func (d *Datapath) synchronize() error {
	if err := d.kernel.ensureGateway(); err != nil {
		return err
	}
	if err := d.kernel.ensureUnreachable(); err != nil {
		return err
	}
	hosts, err := d.kernel.ensureSets()
	if err != nil {
		return err
	}
	chains, err := ruleOwner.Ensure(rules(d.config))
	if err != nil {
		return err
	}
	// After the rules, because connection tracking has no parameters before.
	if err := netns.SetSysctls(sysctls...); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for range chains {
		d.kernel.changed("rules", "a chain of iptables lacked the proxy's rules, or had others")
	}
	d.hosts = hosts
	if err := d.adopt(); err != nil {
		return fmt.Errorf("reading the kernel's state: %w", err)
	}
	d.stale = false
	return nil
}

// sysctls are the parameters that the proxy needs.
var sysctls = []netns.Sysctl{
	{Name: "net/ipv4/ip_forward", Value: "1"},
	{Name: "net/ipv4/conf/all/send_redirects", Value: "0"},
	// A move may make TCP jump; a packet that connection tracking then takes
	// for invalid would leave with its virtual address.
	{Name: "net/netfilter/nf_conntrack_tcp_be_liberal", Value: "1", Optional: true},
}

// adopt reads devices, neighbours, forwarding entries and routes.
func (d *Datapath) adopt() error {
	c := d.kernel.conn
	links, err := dump(c.LinkList)
	if err != nil {
		return fmt.Errorf("listing devices: %w", err)
	}
	devices, byIndex := map[pod.Label]*device{}, map[int]*device{}
	for _, link := range links {
		v, ok := link.(*netlink.Vxlan)
		if !ok {
			continue
		}
		label, ours := parseDeviceName(v.Name)
		if !ours || pod.Label(v.VxlanId) != label || d.reaper.deleting[label] {
			continue
		}
		remote, _ := netip.AddrFromSlice(v.Group)
		dev := &device{label: label, index: v.Index, remote: remote.Unmap()}
		// Configuring 10,000 devices again would take a second.
		if known := d.devices[label]; known != nil && known.index == dev.index && v.Flags&net.FlagUp != 0 {
			dev.configured = known.configured
		}
		devices[label], byIndex[v.Index] = dev, dev
	}
	if err := readNeighbors(c, byIndex); err != nil {
		return err
	}
	held := map[netip.Addr]time.Time{}
	paths, unclaimed := map[netip.Addr]*path{}, make(map[pod.Label]*device, len(devices))
	for label, dev := range devices {
		unclaimed[label] = dev
	}
	routes, err := dump(func() ([]netlink.Route, error) {
		return c.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return fmt.Errorf("listing routes: %w", err)
	}
	for _, r := range routes {
		dev := byIndex[r.LinkIndex]
		if dev == nil || r.Dst == nil {
			continue
		}
		virtual, _ := netip.AddrFromSlice(r.Dst.IP)
		p := &path{virtual: virtual.Unmap(), current: dev}
		if dev.virtual == p.virtual && dev.neighbor == neighborHeld {
			held[p.virtual] = time.Now()
			if since, known := d.held[p.virtual]; known {
				held[p.virtual] = since
			}
		}
		if known := d.paths[p.virtual]; known != nil {
			p.call = known.call
		}
		paths[p.virtual] = p
		delete(unclaimed, dev.label)
	}
	d.paths, d.devices, d.unclaimed, d.held = paths, devices, unclaimed, held
	d.reaper.forget()
	return nil
}

// readNeighbors adds neighbour and forwarding entries to the devices.
func readNeighbors(c *netns.Conn, byIndex map[int]*device) error {
	neighbors, err := dump(func() ([]netlink.Neigh, error) { return c.NeighList(0, unix.AF_INET) })
	if err != nil {
		return fmt.Errorf("listing neighbours: %w", err)
	}
	for _, n := range neighbors {
		dev := byIndex[n.LinkIndex]
		virtual, ok := netip.AddrFromSlice(n.IP)
		if dev == nil || !ok {
			continue
		}
		if virtual.Unmap() == detourGateway {
			dev.detoured = true
			continue
		}
		switch n.State {
		case netlink.NUD_PERMANENT:
			dev.virtual, dev.neighbor = virtual.Unmap(), neighborOpen
		case netlink.NUD_INCOMPLETE:
			dev.virtual, dev.neighbor = virtual.Unmap(), neighborHeld
		}
	}
	entries, err := dump(func() ([]netlink.Neigh, error) { return c.NeighList(0, unix.AF_BRIDGE) })
	if err != nil {
		return fmt.Errorf("listing forwarding entries: %w", err)
	}
	for _, n := range entries {
		if dev := byIndex[n.LinkIndex]; dev != nil && n.VNI != 0 {
			remote, _ := netip.AddrFromSlice(n.IP)
			dev.redirect = redirect{label: pod.Label(n.VNI), remote: remote.Unmap()}
		}
	}
	return nil
}

// dumpTries is how often a listing is repeated that somebody else's change has
// made inconsistent.
const dumpTries = 10

// dump lists until the listing is consistent.
func dump[T any](list func() ([]T, error)) (items []T, err error) {
	for range dumpTries {
		if items, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return items, err
}
