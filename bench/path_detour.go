package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/vishvananda/netlink"

	"podd/bench/traffic"
	"podd/lab"
	"podd/vnet/netns"
)

// The other way to a server: by a node beside the proxy, which is linked to the
// router as the proxy is, to a server on the same host as the pod.
const transit = "transit"

var (
	transitAddress = netip.MustParseAddr("10.10.250.2")
	transitGateway = netip.MustParseAddr("10.10.250.1")
	plainAddress   = netip.MustParseAddr("10.99.0.2")
)

// detour is what plain routing and HAProxy use.
type detour struct {
	stops []func() error
}

// newDetour makes the node and its routes, and starts HAProxy on it and the
// server on the pod's host. What it makes of networks ends with the lab.
func newDetour(ctx context.Context, b *bench, server string) (_ *detour, err error) {
	d := &detour{}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("making the way of plain routing: %w", err), d.close())
		}
	}()
	if err := makeTransit(b.lab); err != nil {
		return nil, err
	}
	if err := routeDetour(b.lab); err != nil {
		return nil, err
	}
	if err := d.start(b.lab.CommandContext(ctx, sides[0], server, strconv.Itoa(traffic.Port), plainAddress.String())); err != nil {
		return nil, err
	}
	config := filepath.Join(b.dir, "haproxy.cfg")
	if err := os.WriteFile(config, []byte(haproxyConfig()), 0o644); err != nil {
		return nil, fmt.Errorf("configuring HAProxy: %w", err)
	}
	if _, err := exec.LookPath("haproxy"); err != nil {
		return nil, fmt.Errorf("HAProxy is not installed (Debian's package haproxy): %w", err)
	}
	return d, d.start(exec.CommandContext(ctx, "nsenter", "--net="+b.lab.Namespace(transit), "--", "haproxy", "-db", "-f", config))
}

func (d *detour) start(cmd *exec.Cmd) error {
	cmd.Stderr = os.Stderr
	stop, err := startProgram(cmd)
	if err == nil {
		d.stops = append(d.stops, stop)
	}
	return err
}

func (d *detour) close() error {
	var errs []error
	for _, stop := range d.stops {
		errs = append(errs, stop())
	}
	return errors.Join(errs...)
}

// haproxyConfig forwards the server's TCP ports. Payload goes by splice(2),
// which is the fastest that HAProxy can.
func haproxyConfig() string {
	text := "global\n\tmaxconn 2000\ndefaults\n\tmode tcp\n\toption splice-auto\n\ttimeout connect 5s\n\ttimeout client 60s\n\ttimeout server 60s\n"
	for port := traffic.Port; port < traffic.Port+traffic.Ports-1; port++ {
		text += fmt.Sprintf("listen port%[1]d\n\tbind %[2]s:%[1]d\n\tserver one %[3]s:%[1]d\n", port, transitAddress, plainAddress)
	}
	return text
}

// makeTransit makes the node, with a default route to the router.
func makeTransit(l *lab.Lab) error {
	if err := netns.Create(l.Namespace(transit), func() error { return setUp("lo", netip.Prefix{}) }); err != nil {
		return err
	}
	ns, err := netns.Open(l.Namespace(transit))
	if err != nil {
		return err
	}
	defer ns.Close()
	const uplink, bits = "uplink", 24
	err = l.Do(lab.Router, func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: transit}, PeerName: uplink, PeerNamespace: netlink.NsFd(int(ns.Fd()))}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("adding veth: %w", err)
		}
		return setUp(transit, netip.PrefixFrom(transitGateway, bits))
	})
	if err != nil {
		return err
	}
	return netns.DoIn(ns, func() error {
		if err := setUp(uplink, netip.PrefixFrom(transitAddress, bits)); err != nil {
			return err
		}
		if err := netlink.RouteAdd(&netlink.Route{Gw: transitGateway.AsSlice()}); err != nil {
			return fmt.Errorf("adding default route: %w", err)
		}
		return netns.SetSysctls(
			netns.Sysctl{Name: "net/ipv4/ip_forward", Value: "1"},
			netns.Sysctl{Name: "net/ipv4/conf/all/send_redirects", Value: "0"},
			netns.Sysctl{Name: "net/ipv4/conf/" + uplink + "/send_redirects", Value: "0"},
		)
	})
}

// routeDetour has packets for the plain server, and its answers, pass by the
// node: what comes from there goes on, everything else goes there.
func routeDetour(l *lab.Lab) error {
	const toServer, toTransit, priority = 100, 101, 1000
	err := l.Do(lab.Router, func() error {
		for _, name := range []string{"all", transit, sides[0]} {
			if err := netns.SetSysctls(netns.Sysctl{Name: "net/ipv4/conf/" + name + "/rp_filter", Value: "0"}); err != nil {
				return err
			}
		}
		for _, r := range []*netlink.Route{
			{Dst: host(plainAddress), Gw: transitAddress.AsSlice()},
			{Table: toServer, Dst: host(plainAddress), Gw: l.Address(sides[0]).AsSlice()},
			{Table: toTransit, Gw: transitAddress.AsSlice(), Dst: host(l.Address(lab.Client))},
		} {
			if err := netlink.RouteAdd(r); err != nil {
				return fmt.Errorf("adding route %s: %w", r, err)
			}
		}
		there, back := netlink.NewRule(), netlink.NewRule()
		there.IifName, there.Dst, there.Table, there.Priority = transit, host(plainAddress), toServer, priority
		back.IifName, back.Src, back.Table, back.Priority = sides[0], host(plainAddress), toTransit, priority
		for _, rule := range []*netlink.Rule{there, back} {
			if err := netlink.RuleAdd(rule); err != nil {
				return fmt.Errorf("adding rule %s: %w", rule, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return l.Do(sides[0], func() error { return setUp("lo", netip.PrefixFrom(plainAddress, 32)) })
}

func host(a netip.Addr) *net.IPNet { return netlink.NewIPNet(a.AsSlice()) }

// setUp brings a device of the thread's namespace up, with an address if one
// is given.
func setUp(name string, address netip.Prefix) error {
	device, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("looking for %s: %w", name, err)
	}
	if address.IsValid() {
		ip := &net.IPNet{IP: address.Addr().AsSlice(), Mask: net.CIDRMask(address.Bits(), 32)}
		if err := netlink.AddrAdd(device, &netlink.Addr{IPNet: ip}); err != nil {
			return fmt.Errorf("adding address %s to %s: %w", address, name, err)
		}
	}
	if err := netlink.LinkSetUp(device); err != nil {
		return fmt.Errorf("bringing up %s: %w", name, err)
	}
	return nil
}
