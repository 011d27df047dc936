package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"

	"podd/pod"
	"podd/vnet/netns"
	"podd/vnet/vxlan"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Repair is one thing that was not in the kernel as the last Set had left it,
// and has been put right: a firewall that was reloaded, an administrator.
type Repair struct {
	// Kind is "rules", "set", "sysctl", "gateway", "route", "device" or
	// "neighbour".
	Kind string
	// Detail says what was found.
	Detail string
}

func (r Repair) String() string { return r.Kind + ": " + r.Detail }

// RepairKinds are all values of Repair.Kind.
var RepairKinds = []string{"rules", "set", "sysctl", "gateway", "route", "device", "neighbour"}

// Repair is a Set that compares the kernel itself with state, which must be
// that of the last Set, and says what it has found different. It takes some
// 100 ms, most of it for iptables.
func (d *Datapath) Repair(ctx context.Context, state State) ([]Repair, error) {
	repairs, err := d.kernel.lookAround()
	if err != nil {
		return nil, fmt.Errorf("comparing the kernel: %w", err)
	}
	d.mu.Lock()
	if d.stale {
		// What differs may be what a Set that failed has left.
		d.mu.Unlock()
		return nil, d.Set(ctx, state)
	}
	d.stale, d.known, d.kernel.repairs = true, d.devices, &repairs
	d.mu.Unlock()
	err = d.Set(ctx, state)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.known, d.kernel.repairs = nil, nil
	return repairs, err
}

// lookAround finds what differs in the parts that are the same for all pods
// and that synchronize makes without looking.
func (k *kernel) lookAround() (repairs []Repair, err error) {
	found := func(kind, format string, args ...any) {
		repairs = append(repairs, Repair{Kind: kind, Detail: fmt.Sprintf(format, args...)})
	}
	var failures []error
	for _, s := range sysctls {
		value, err := netns.GetSysctl(s.Name)
		switch {
		case s.Optional && errors.Is(err, fs.ErrNotExist):
		case err != nil:
			failures = append(failures, err)
		case value != s.Value:
			found("sysctl", "%s was %s, not %s", s.Name, value, s.Value)
		}
	}
	anchor, err := k.conn.LinkByName(vxlan.AnchorName)
	switch {
	case netns.IsNotFound(err):
		found("gateway", "device %s was missing", vxlan.AnchorName)
	case err != nil:
		failures = append(failures, fmt.Errorf("looking for device %s: %w", vxlan.AnchorName, err))
	default:
		if anchor.Attrs().Flags&net.FlagUp == 0 {
			found("gateway", "device %s was down", vxlan.AnchorName)
		}
		addresses, err := dump(func() ([]netlink.Addr, error) { return k.conn.AddrList(anchor, unix.AF_INET) })
		if err != nil {
			failures = append(failures, fmt.Errorf("listing the addresses of %s: %w", vxlan.AnchorName, err))
		} else if !slices.ContainsFunc(addresses, func(a netlink.Addr) bool { return a.IP.Equal(pod.Gateway.AsSlice()) }) {
			found("gateway", "address %s was missing", pod.Gateway)
		}
	}
	wanted := unreachable(k.config.VirtualPrefix)
	routes, err := dump(func() ([]netlink.Route, error) {
		return k.conn.RouteListFiltered(unix.AF_INET,
			&netlink.Route{Protocol: routeProtocol, Type: unix.RTN_UNREACHABLE}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TYPE)
	})
	if err != nil {
		failures = append(failures, fmt.Errorf("listing unreachable prefixes: %w", err))
	} else if !slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Dst != nil && r.Dst.String() == wanted.Dst.String() }) {
		found("route", "%s was not unreachable", wanted.Dst)
	}
	for name, least := range map[string]int{hostSet: 0, serviceSet: len(services)} {
		set, err := k.conn.IpsetList(name)
		if err != nil || len(set.Entries) < least {
			found("set", "%s was missing or incomplete", name)
		}
	}
	return repairs, errors.Join(failures...)
}
