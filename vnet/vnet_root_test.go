//go:build root

package vnet_test

import (
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"podd/pod"
	"podd/vnet"
	"podd/vnet/netns"
	"podd/vnet/vnettest"
	"podd/vnet/vxlan"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// open makes the Network of a host that lives in a namespace of the topology.
func open(t testing.TB, host vnettest.Node, proxy vnettest.Node) *vnet.Network {
	t.Helper()
	var n *vnet.Network
	host.Do(t, func() (err error) {
		n, err = vnet.New(vnet.Config{Physical: host.Address, Proxy: proxy.Address}, slog.New(slog.DiscardHandler))
		return err
	})
	t.Cleanup(func() { n.Close() })
	return n
}

func binding(label pod.Label, virtual string, host vnettest.Node) pod.Binding {
	return pod.Binding{Virtual: netip.MustParseAddr(virtual), Physical: host.Address, Host: host.Name, Label: label, Epoch: 1}
}

// newNamespace makes a pod's namespace.
func newNamespace(t testing.TB, n *vnet.Network) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "alice-1")
	t.Cleanup(func() {
		if err := n.DeleteNamespace(path); err != nil {
			t.Error(err)
		}
	})
	if err := n.CreateNamespace(path); err != nil {
		t.Fatal(err)
	}
	return path
}

// newPod makes a namespace with a NIC.
func newPod(t testing.TB, n *vnet.Network, b pod.Binding, options vnet.AttachOptions) string {
	t.Helper()
	path := newNamespace(t, n)
	if err := n.Attach(path, b, options); err != nil {
		t.Fatal(err)
	}
	return path
}

// addPeer gives the proxy the other end of a label, as podproxy would.
func addPeer(t testing.TB, proxy vnettest.Node, b pod.Binding) {
	t.Helper()
	proxy.Do(t, func() error {
		c, err := netns.Dial("")
		if err != nil {
			return err
		}
		defer c.Close()
		name := "peer" + b.Label.String()
		err = vxlan.Create(c, vxlan.Device{
			Name: name, Label: b.Label, Local: proxy.Address, Remote: b.Physical,
			Port: vxlan.DefaultPort, MAC: vxlan.ProxyMAC, Up: true,
		})
		if err != nil {
			return err
		}
		link, err := c.LinkByName(name)
		if err != nil {
			return err
		}
		if err := vxlan.SetNeighbor(c, link.Attrs().Index, b.Virtual, vxlan.PodMAC); err != nil {
			return err
		}
		if err := c.AddrReplace(link, &netlink.Addr{IPNet: netlink.NewIPNet(pod.Gateway.AsSlice())}); err != nil {
			return err
		}
		return c.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: netlink.NewIPNet(b.Virtual.AsSlice()), Scope: netlink.SCOPE_LINK})
	})
}

func TestNamespace(t *testing.T) {
	topology := vnettest.New(t, 1)
	n := open(t, topology.Hosts[0], topology.Proxy)
	path := filepath.Join(t.TempDir(), "pods", "alice-1")
	t.Cleanup(func() { n.DeleteNamespace(path) })

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.CreateNamespace(path); err != nil {
			t.Fatal(err)
		}
	}
	if after, _ := os.Readlink("/proc/thread-self/ns/net"); after != before {
		t.Errorf("the thread's namespace changed from %s to %s", before, after)
	}
	vnettest.Do(t, path, func() error {
		for name, want := range map[string]string{
			"net/mptcp/enabled":                   "0",
			"net/ipv6/conf/default/disable_ipv6":  "1",
			"net/ipv4/ip_unprivileged_port_start": "0",
			"net/ipv4/ping_group_range":           "0 0",
			// Its own; one that is shared is told as a negative number.
			"net/ipv4/tcp_ehash_entries": "8192",
		} {
			if got, err := netns.GetSysctl(name); err != nil || got != want {
				t.Errorf("%s is %q (%v), want %q", name, got, err, want)
			}
		}
		lo, err := netlink.LinkByName("lo")
		if err == nil && lo.Attrs().Flags&net.FlagUp == 0 {
			t.Error("the loopback device is down")
		}
		return err
	})
	for range 2 {
		if err := n.DeleteNamespace(path); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the namespace's file is still there: %v", err)
	}
}

func TestInterruptedCreationIsRepeated(t *testing.T) {
	topology := vnettest.New(t, 1)
	n := open(t, topology.Hosts[0], topology.Proxy)
	path := filepath.Join(t.TempDir(), "alice-1")
	if err := os.WriteFile(path, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	if err := n.Detach(path); err != nil {
		t.Errorf("detaching from a file that is no namespace: %v", err)
	}
	if err := n.CreateNamespace(path); err != nil {
		t.Fatal(err)
	}
	if err := n.DeleteNamespace(path); err != nil {
		t.Fatal(err)
	}
}

func TestAttach(t *testing.T) {
	topology := vnettest.New(t, 1)
	host := topology.Hosts[0]
	n := open(t, host, topology.Proxy)
	b := binding(77, "100.64.0.1", host)
	path := newPod(t, n, b, vnet.AttachOptions{})
	addPeer(t, topology.Proxy, b)

	vnettest.Do(t, path, func() error {
		link, err := netlink.LinkByName(vnet.NIC)
		if err != nil {
			return err
		}
		v := link.(*netlink.Vxlan)
		if v.VxlanId != 77 || v.UDPCSum || v.Learning || v.MTU != 1450 || v.HardwareAddr.String() != vxlan.PodMAC.String() ||
			!v.Group.Equal(topology.Proxy.Address.AsSlice()) || !v.SrcAddr.Equal(host.Address.AsSlice()) {
			t.Errorf("the NIC is not as asked for: %+v", v)
		}
		v6, err := netlink.AddrList(link, netlink.FAMILY_V6)
		if len(v6) != 0 {
			t.Errorf("the NIC has IPv6 addresses %v", v6)
		}
		return err
	})
	if err := n.Attach(path, b, vnet.AttachOptions{}); err != nil {
		t.Errorf("attaching again: %v", err)
	}
	other := b
	other.Label = 78
	if err := n.Attach(path, other, vnet.AttachOptions{}); !errors.Is(err, pod.ErrExists) {
		t.Errorf("attaching a second NIC: got %v, want %v", err, pod.ErrExists)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	vnettest.NewNamespace(t, empty)
	if err := n.Attach(empty, b, vnet.AttachOptions{}); !errors.Is(err, pod.ErrExists) {
		t.Errorf("attaching a label that is in use: got %v, want %v", err, pod.ErrExists)
	}

	vnettest.Serve(t, topology.Proxy.Path, ":9000", "proxy")
	c := vnettest.Dial(t, path, topology.Proxy.Address.String()+":9000")
	vnettest.ExpectGreeting(t, c, "proxy")

	for range 2 {
		if err := n.Detach(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestNoDescriptorLeak does everything a pod goes through many times.
func TestNoDescriptorLeak(t *testing.T) {
	topology := vnettest.New(t, 1)
	n := open(t, topology.Hosts[0], topology.Proxy)
	path := newPod(t, n, binding(5, "100.64.0.1", topology.Hosts[0]), vnet.AttachOptions{})
	use := func() {
		for _, err := range []error{n.Block(path), n.Unblock(path), n.CreateNamespace(path)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		if _, err := n.CountConnections(path); err != nil {
			t.Fatal(err)
		}
	}
	use()
	before := descriptors(t)
	for range 20 {
		use()
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors were open, now %d", before, after)
	}
}

func descriptors(t testing.TB) int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestReconcile(t *testing.T) {
	topology := vnettest.New(t, 1)
	n := open(t, topology.Hosts[0], topology.Proxy)
	directory := t.TempDir()
	keep, drop, file := filepath.Join(directory, "alice-2"), filepath.Join(directory, "alice-1"), filepath.Join(directory, "bob-1")
	for _, path := range []string{keep, drop} {
		t.Cleanup(func() { n.DeleteNamespace(path) })
		if err := n.CreateNamespace(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Attach(drop, binding(5, "100.64.0.1", topology.Hosts[0]), vnet.AttachOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	if err := n.Reconcile(directory, map[string]bool{keep: true}); err != nil {
		t.Fatal(err)
	}
	got, err := n.List(directory)
	if err != nil || len(got) != 1 || got[0] != keep {
		t.Errorf("%v is left (%v), want only %s", got, err, keep)
	}
	// The label is free again, although its namespace may linger.
	if err := n.Attach(keep, binding(5, "100.64.0.1", topology.Hosts[0]), vnet.AttachOptions{}); err != nil {
		t.Error(err)
	}
}

func TestCountConnections(t *testing.T) {
	topology := vnettest.New(t, 1)
	n := open(t, topology.Hosts[0], topology.Proxy)
	b := binding(5, "100.64.0.1", topology.Hosts[0])
	path := newPod(t, n, b, vnet.AttachOptions{})
	addPeer(t, topology.Proxy, b)
	vnettest.Serve(t, path, ":80", "pod")
	vnettest.ExpectGreeting(t, vnettest.Dial(t, path, "127.0.0.1:80"), "pod")
	vnettest.ExpectGreeting(t, vnettest.Dial(t, path, "100.64.0.1:80"), "pod")
	for want := range 3 {
		if got, err := n.CountConnections(path); err != nil || got != want {
			t.Errorf("%d connections (%v), want %d", got, err, want)
		}
		vnettest.ExpectGreeting(t, vnettest.Dial(t, topology.Proxy.Path, "100.64.0.1:80"), "pod")
	}
}

// TestAnchorKeepsSilence sends a packet with a label nobody has, first to a
// host without any labelled device and then to one with an anchor.
func TestAnchorKeepsSilence(t *testing.T) {
	topology := vnettest.New(t, 1)
	host := topology.Hosts[0]
	n := open(t, host, topology.Proxy)
	if !refuses(t, topology.Proxy, host) {
		t.Error("a host without an anchor should refuse: the test proves nothing")
	}
	for range 2 {
		if err := n.EnsureAnchor(); err != nil {
			t.Fatal(err)
		}
	}
	if refuses(t, topology.Proxy, host) {
		t.Error("the host answered a packet with an unknown label")
	}
	for range 2 {
		if err := n.RemoveAnchor(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestForgedLabel sends a packet for a pod from the client, which is not the proxy.
func TestForgedLabel(t *testing.T) {
	topology := vnettest.New(t, 1)
	host := topology.Hosts[0]
	n := open(t, host, topology.Proxy)
	b := binding(300000, "100.64.0.1", host)
	path := newPod(t, n, b, vnet.AttachOptions{})
	arrived := vnettest.ListenUDP(t, path, ":5000")
	packet := vnettest.Datagram(topology.Client.Address, b.Virtual, 5000, "labelled")
	send := func(from vnettest.Node) {
		t.Helper()
		vnettest.SendLabelled(t, from, host, b.Label, vxlan.ProxyMAC, vxlan.PodMAC, packet)
	}
	send(topology.Client)
	vnettest.Eventually(t, "without a rule the packet arrives", func() bool { return arrived() == 1 })
	for range 2 {
		host.Do(t, n.EnsureFirewall)
	}
	// Both come by the same way, so the second has not overtaken the first.
	_, before := vnettest.Packets(t, path, vnet.NIC)
	send(topology.Client)
	send(topology.Proxy)
	vnettest.Eventually(t, "the proxy's packet arrives", func() bool { return arrived() == 1 })
	if _, after := vnettest.Packets(t, path, vnet.NIC); after != before+1 {
		t.Errorf("%d packets have arrived, want the proxy's", after-before)
	}
	for range 2 {
		host.Do(t, n.RemoveFirewall)
	}
	send(topology.Client)
	vnettest.Eventually(t, "without the rule it arrives again", func() bool { return arrived() == 1 })
}

// TestForgedLabelElsewhere sends a forged packet to another address of the
// host, where the kernel would take it just as well.
func TestForgedLabelElsewhere(t *testing.T) {
	topology := vnettest.New(t, 1)
	host := topology.Hosts[0]
	n := open(t, host, topology.Proxy)
	b := binding(300000, "100.64.0.1", host)
	path := newPod(t, n, b, vnet.AttachOptions{})
	arrived := vnettest.ListenUDP(t, path, ":5000")
	packet := vnettest.Datagram(topology.Client.Address, b.Virtual, 5000, "labelled")
	elsewhere := host
	elsewhere.Address = host.Address.Next()
	host.Do(t, func() error {
		uplink, err := netlink.LinkByName("uplink")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(uplink, &netlink.Addr{IPNet: &net.IPNet{IP: elsewhere.Address.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	})
	send := func(from vnettest.Node) {
		t.Helper()
		vnettest.SendLabelled(t, from, elsewhere, b.Label, vxlan.ProxyMAC, vxlan.PodMAC, packet)
	}
	send(topology.Client)
	vnettest.Eventually(t, "without a rule the packet arrives", func() bool { return arrived() == 1 })
	host.Do(t, n.EnsureFirewall)
	_, before := vnettest.Packets(t, path, vnet.NIC)
	send(topology.Client)
	send(topology.Proxy)
	vnettest.Eventually(t, "the proxy's packet arrives", func() bool { return arrived() == 1 })
	if _, after := vnettest.Packets(t, path, vnet.NIC); after != before+1 {
		t.Errorf("%d packets have arrived, want the proxy's", after-before)
	}
}

// TestRepair takes away what the host has for all pods.
func TestRepair(t *testing.T) {
	topology := vnettest.New(t, 1)
	host := topology.Hosts[0]
	n := open(t, host, topology.Proxy)
	repair := func(want ...string) {
		t.Helper()
		host.Do(t, func() error {
			repaired, err := n.Repair()
			if !slices.Equal(repaired, want) {
				t.Errorf("repaired %q, want %q", repaired, want)
			}
			return err
		})
	}
	anchor, rule := "the anchor device "+vxlan.AnchorName, "the rule against forged packets"
	repair(anchor, rule)
	repair()
	host.Do(t, n.RemoveFirewall)
	repair(rule)
	host.Do(t, func() error {
		link, err := netlink.LinkByName(vxlan.AnchorName)
		if err != nil {
			return err
		}
		return netlink.LinkSetDown(link)
	})
	repair(anchor)
	host.Do(t, n.RemoveAnchor)
	repair(anchor)
	repair()
}

// TestRoutingHost makes the router a host too: what it forwards for others is
// none of its business.
func TestRoutingHost(t *testing.T) {
	topology := vnettest.New(t, 1)
	host := topology.Hosts[0]
	n := open(t, host, topology.Proxy)
	b := binding(300000, "100.64.0.1", host)
	path := newPod(t, n, b, vnet.AttachOptions{})
	arrived := vnettest.ListenUDP(t, path, ":5000")
	topology.Router.Do(t, open(t, topology.Router, topology.Proxy).EnsureFirewall)
	packet := vnettest.Datagram(topology.Client.Address, b.Virtual, 5000, "labelled")
	vnettest.SendLabelled(t, topology.Client, host, b.Label, vxlan.ProxyMAC, vxlan.PodMAC, packet)
	vnettest.Eventually(t, "a packet between other machines arrives", func() bool { return arrived() == 1 })
}

// refuses reports whether an ICMP error answers a VXLAN packet with label 9. A
// second packet, to a port that is surely closed, shows when the answer to the
// first would have come.
func refuses(t *testing.T, from, to vnettest.Node) bool {
	t.Helper()
	send := func(port int) *net.UDPConn {
		var c *net.UDPConn
		from.Do(t, func() (err error) {
			c, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: to.Address.AsSlice(), Port: port})
			return err
		})
		t.Cleanup(func() { c.Close() })
		if _, err := c.Write([]byte{8, 0, 0, 0, 0, 0, 9, 0}); err != nil {
			t.Fatal(err)
		}
		return c
	}
	labelled, closed := send(vxlan.DefaultPort), send(9)
	vnettest.Eventually(t, "the closed port has answered", func() bool { return socketError(t, closed) == unix.ECONNREFUSED })
	return socketError(t, labelled) == unix.ECONNREFUSED
}

func socketError(t *testing.T, c *net.UDPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var value int
	if err := raw.Control(func(fd uintptr) { value, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR) }); err != nil {
		t.Fatal(err)
	}
	return unix.Errno(value)
}
