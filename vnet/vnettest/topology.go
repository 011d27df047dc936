// Package vnettest builds, for tests, a small internet of network namespaces:
// a router with a client, a proxy and some hosts around it, each in a subnet of
// its own. Nothing of it exists outside the namespaces, so tests that run at
// the same time don't meet.
package vnettest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"podd/vnet/netns"

	"github.com/vishvananda/netlink"
)

// The prefixes of the lab.
var (
	PublicPrefix  = netip.MustParsePrefix("198.18.0.0/16")
	VirtualPrefix = netip.MustParsePrefix("100.64.0.0/16")
)

// Node is one namespace with one address on its link to the router.
type Node struct {
	Name string
	// Path is the namespace's file.
	Path    string
	Address netip.Addr
}

// Topology is the small internet.
type Topology struct {
	Router, Client, Proxy Node
	Hosts                 []Node
}

// New builds a topology with that many hosts, and takes it down when the test ends.
func New(t testing.TB, hosts int) *Topology {
	t.Helper()
	RequireRoot(t)
	directory := t.TempDir()
	node := func(name, address string) Node {
		n := Node{Name: name, Path: filepath.Join(directory, name), Address: netip.MustParseAddr(address)}
		NewNamespace(t, n.Path)
		return n
	}
	topology := &Topology{
		Router: node("router", "0.0.0.0"),
		Client: node("client", "192.0.2.10"),
		Proxy:  node("proxy", "10.10.0.2"),
	}
	for i := range hosts {
		topology.Hosts = append(topology.Hosts, node("host-"+string(rune('a'+i)), fmt.Sprintf("10.10.%d.2", i+1)))
	}
	for _, n := range append([]Node{topology.Client, topology.Proxy}, topology.Hosts...) {
		topology.link(t, n)
	}
	topology.Router.Do(t, func() error {
		if err := netns.SetSysctls(netns.Sysctl{Name: "net/ipv4/ip_forward", Value: "1"}); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: ipNet(PublicPrefix), Gw: topology.Proxy.Address.AsSlice()})
	})
	return topology
}

// RequireRoot fails the test when it isn't run by root.
func RequireRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces: run it as root")
	}
}

// NewNamespace makes a namespace with its loopback device up, and deletes it
// when the test ends.
func NewNamespace(t testing.TB, path string) {
	t.Helper()
	t.Cleanup(func() {
		if err := netns.Delete(path); err != nil {
			t.Error(err)
		}
	})
	err := netns.Create(path, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		// Duplicate address detection would delay a link's first packets.
		if err := netns.SetSysctls(netns.Sysctl{Name: "net/ipv6/conf/default/disable_ipv6", Value: "1", Optional: true}); err != nil {
			return err
		}
		return netlink.LinkSetUp(lo)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// link joins a node to the router, which has the first address of the subnet.
func (topology *Topology) link(t testing.TB, n Node) {
	t.Helper()
	subnet := netip.PrefixFrom(n.Address, 24)
	gateway := subnet.Masked().Addr().Next()
	ns, err := netns.Open(n.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	topology.Router.Do(t, func() error {
		err := netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: n.Name}, PeerName: "uplink", PeerNamespace: netlink.NsFd(int(ns.Fd())),
		})
		if err != nil {
			return err
		}
		return up(n.Name, netip.PrefixFrom(gateway, 24))
	})
	n.Do(t, func() error {
		if err := up("uplink", subnet); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Gw: gateway.AsSlice()})
	})
}

func up(name string, address netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(address)}); err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

// Do runs fn in the node's namespace and fails the test when it fails.
func (n Node) Do(t testing.TB, fn func() error) {
	t.Helper()
	Do(t, n.Path, fn)
}

// Do runs fn in the namespace at path and fails the test when it fails.
func Do(t testing.TB, path string, fn func() error) {
	t.Helper()
	if err := netns.Do(path, fn); err != nil {
		t.Fatalf("in %s: %v", filepath.Base(path), err)
	}
}

// Eventually waits until condition is true, and fails the test when it still
// isn't after Timeout.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	deadline := time.NewTimer(Timeout)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-deadline.C:
			t.Fatalf("timed out waiting until %s", what)
		case <-tick.C:
		}
	}
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
