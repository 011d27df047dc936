//go:build root

package datapath

import (
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"podd/pod"
	"podd/vnet"
	"podd/vnet/netns"
	"podd/vnet/vnettest"
	"podd/vnet/vxlan"

	"github.com/coreos/go-iptables/iptables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dropped returns how many packets the proxy's dropping rules of a chain have dropped.
func (l *lab) dropped(table, chain string) uint64 {
	l.t.Helper()
	var count uint64
	l.Proxy.Do(l.t, func() error {
		ipt, err := iptables.New()
		if err != nil {
			return err
		}
		lines, err := ipt.ListWithCounters(table, chain)
		if err != nil {
			return err
		}
		for _, line := range lines {
			_, counters, found := strings.Cut(line, "-c ")
			if !found || !strings.Contains(line, "-j DROP") {
				continue
			}
			n, err := strconv.ParseUint(strings.Fields(counters)[0], 10, 64)
			if err != nil {
				return err
			}
			count += n
		}
		return nil
	})
	return count
}

// TestSpoofedSource lets a pod send with addresses that are not its own.
func TestSpoofedSource(t *testing.T) {
	l := newLab(t, 1)
	p, other := l.addPod(0), l.addPod(0)
	l.set(l.state())
	client, neighbor := vnettest.ListenUDP(t, l.Client.Path, ":5000"), vnettest.ListenUDP(t, other.path, ":5000")
	forged := []netip.Addr{other.binding.Virtual, other.binding.Public, l.Client.Address, l.Hosts[0].Address, l.Proxy.Address, pod.Gateway}
	for _, source := range forged {
		vnettest.SendRaw(t, p.path, source, l.Client.Address, 5000)
		vnettest.SendRaw(t, p.path, source, other.binding.Virtual, 5000)
	}
	vnettest.Eventually(t, "all forged packets are dropped", func() bool {
		return l.dropped("raw", "PREROUTING") == uint64(2*len(forged))
	})
	// With its own address the same packets arrive, after the others.
	for destination, received := range map[netip.Addr]func() int{l.Client.Address: client, other.binding.Virtual: neighbor} {
		vnettest.SendRaw(t, p.path, p.binding.Virtual, destination, 5000)
		count := 0
		vnettest.Eventually(t, "the genuine packet arrives", func() bool { count += received(); return count > 0 })
		if count != 1 {
			t.Errorf("%d packets have arrived at %s, want the genuine one", count, destination)
		}
	}
}

// TestForgedLabel sends a labelled packet from the client, which is no host.
func TestForgedLabel(t *testing.T) {
	l := newLab(t, 2)
	p, target := l.addPod(0), l.addPod(0)
	l.set(l.state())
	received := vnettest.ListenUDP(t, target.path, ":5000")
	packet := vnettest.Datagram(p.binding.Virtual, target.binding.Virtual, 5000, "labelled")
	send := func(from vnettest.Node) {
		t.Helper()
		vnettest.SendLabelled(t, from, l.Proxy, p.binding.Label, vxlan.PodMAC, vxlan.ProxyMAC, packet)
	}
	send(l.Client)
	vnettest.Eventually(t, "the forged packet is dropped", func() bool { return l.dropped("raw", "PREROUTING") == 1 })
	if n := received(); n != 0 {
		t.Errorf("%d forged packets have arrived", n)
	}
	// The packet is well made: from a host it is let through.
	send(l.Hosts[0])
	vnettest.Eventually(t, "the same packet from a host arrives", func() bool { return received() == 1 })
	// A host that has left is no host.
	s := l.state()
	s.Hosts = s.Hosts[1:]
	l.set(s)
	send(l.Hosts[0])
	vnettest.Eventually(t, "the packet of a former host is dropped", func() bool { return l.dropped("raw", "PREROUTING") == 2 })
}

// TestSupersededCopy keeps the old copy of a moved pod running: it can't be
// reached and can't speak, and is told nothing about it, neither while the
// proxy still has the device of its label nor afterwards.
func TestSupersededCopy(t *testing.T) {
	l := newLab(t, 2)
	l.config.Linger = time.Hour
	l.restart()
	stale := l.addPod(0)
	l.set(l.state())
	vnettest.Serve(t, stale.path, ":80", "the old copy")
	client := vnettest.ListenUDP(t, l.Client.Path, ":5000")
	c := vnettest.Dial(t, l.Client.Path, stale.public()+":80")
	vnettest.ExpectGreeting(t, c, "the old copy")
	listener := vnettest.Listen(t, stale.path, ":81")
	reverse := vnettest.Dial(t, l.Client.Path, stale.public()+":81")
	accepted, err := listener.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close() })

	// The new copy has the same address under another label.
	l.pods = nil
	fresh := l.addPod(1)
	if fresh.virtual() != stale.virtual() {
		t.Fatal("the copies have different addresses")
	}
	vnettest.Serve(t, fresh.path, ":80", "the new copy")
	l.set(l.state())

	for _, when := range []string{"superseded", "deleted"} {
		sent, received := vnettest.Packets(t, stale.path, vnet.NIC)
		if _, err := accepted.Write([]byte("stale")); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			vnettest.SendRaw(t, stale.path, stale.binding.Virtual, l.Client.Address, 5000)
		}
		retransmissions := vnettest.TCPInfo(t, accepted).Total_retrans
		vnettest.Eventually(t, "the old copy has retransmitted", func() bool {
			return vnettest.TCPInfo(t, accepted).Total_retrans >= retransmissions+2
		})
		vnettest.ExpectGreeting(t, vnettest.Dial(t, l.Client.Path, fresh.public()+":80"), "the new copy")
		sentNow, receivedNow := vnettest.Packets(t, stale.path, vnet.NIC)
		if sentNow < sent+7 {
			t.Errorf("%s: the old copy has sent %d packets: the test proves nothing", when, sentNow-sent)
		}
		if receivedNow != received {
			t.Errorf("%s: the old copy has received %d packets", when, receivedNow-received)
		}
		if n := client(); n != 0 {
			t.Errorf("%s: %d datagrams of the old copy have arrived", when, n)
		}
		if info := vnettest.TCPInfo(t, reverse); info.Bytes_received != 0 {
			t.Errorf("%s: %d bytes of the old copy have arrived", when, info.Bytes_received)
		}
		if when == "superseded" {
			l.datapath.Close()
			l.config.Linger = 1
			l.open()
			l.set(l.state())
			l.settle()
		}
	}
}

// TestIsolation lets a pod try the addresses of proxy and hosts.
func TestIsolation(t *testing.T) {
	l := newLab(t, 2)
	p := l.addPod(0)
	l.set(l.state())
	for _, node := range []vnettest.Node{l.Proxy, l.Hosts[0], l.Hosts[1], l.Client} {
		for _, port := range []string{":22", ":53"} {
			vnettest.Serve(t, node.Path, port, node.Name+port)
		}
	}
	reach := func(address, greeting string) {
		t.Helper()
		vnettest.ExpectGreeting(t, vnettest.Dial(t, p.path, address), greeting)
	}
	// Connections the proxy makes are answered, whatever the pods may not reach.
	vnettest.Serve(t, p.path, ":80", "pod")
	vnettest.ExpectGreeting(t, vnettest.Dial(t, l.Proxy.Path, p.virtual()+":80"), "pod")
	reach("169.254.1.1:53", "proxy:53")
	reach(l.Client.Address.String()+":22", "client:22")

	for _, refused := range []struct{ chain, address string }{
		{"INPUT", "169.254.1.1:22"},
		{"INPUT", l.Proxy.Address.String() + ":22"},
		{"INPUT", l.Proxy.Address.String() + ":53"},
		{"FORWARD", l.Hosts[0].Address.String() + ":22"},
		{"FORWARD", l.Hosts[1].Address.String() + ":22"},
	} {
		before := l.dropped("filter", refused.chain)
		attempt := make(chan error, 1)
		go func() {
			c, err := vnettest.TryDial(p.path, refused.address, vnettest.Timeout)
			if err == nil {
				c.Close()
			}
			attempt <- err
		}()
		vnettest.Eventually(t, "the packet to "+refused.address+" is dropped", func() bool {
			return l.dropped("filter", refused.chain) > before
		})
		select {
		case err := <-attempt:
			t.Errorf("%s answered: %v", refused.address, err)
		default:
		}
		// The attempt goes on; let it end by letting it through.
		defer func() { <-attempt }()
	}

	l.config.AllowUnderlay = true
	l.restart()
	reach("169.254.1.1:22", "proxy:22")
	reach(l.Hosts[1].Address.String()+":22", "host-b:22")
}

// TestIsolationDatagrams checks DNS over UDP, which the rule allows.
func TestIsolationDatagrams(t *testing.T) {
	l := newLab(t, 1)
	p := l.addPod(0)
	l.set(l.state())
	allowed, refused := vnettest.ListenUDP(t, l.Proxy.Path, ":53"), vnettest.ListenUDP(t, l.Proxy.Path, ":54")
	send := func(port string) {
		t.Helper()
		err := netns.Do(p.path, func() error {
			c, err := net.Dial("udp4", "169.254.1.1:"+port)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write([]byte("query"))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	send("54")
	send("53")
	vnettest.Eventually(t, "the query arrives", func() bool { return allowed() == 1 })
	if n := refused(); n != 0 {
		t.Errorf("%d datagrams have arrived at another port", n)
	}
}

// TestNoPod sends to addresses no pod has: the sender is told so at once, by
// the proxy, and nothing goes back to where it came from.
func TestNoPod(t *testing.T) {
	l := newLab(t, 1)
	p, gone := l.addPod(0), l.addPod(0)
	l.set(l.state())
	vnettest.Serve(t, p.path, ":80", "pod")
	l.pods = l.pods[:1]
	l.set(l.state())
	refused := func() {
		t.Helper()
		for path, address := range map[string]string{l.Client.Path: gone.public(), p.path: gone.virtual()} {
			if c, err := vnettest.TryDial(path, address+":80", vnettest.Timeout); !errors.Is(err, unix.EHOSTUNREACH) {
				t.Errorf("connecting to %s: got %v, %v, want %v", address, c, err, unix.EHOSTUNREACH)
			}
		}
	}
	refused()
	vnettest.ExpectGreeting(t, vnettest.Dial(t, l.Client.Path, p.public()+":80"), "pod")

	// What a stranger takes away comes back.
	l.Proxy.Do(t, func() error { return netlink.RouteDel(unreachable(l.config.VirtualPrefix)) })
	l.datapath.Resync()
	l.set(l.state())
	refused()

	// Another prefix takes the place of the first.
	l.config.VirtualPrefix, l.config.PublicPrefix = netip.MustParsePrefix("100.65.0.0/16"), netip.MustParsePrefix("198.19.0.0/16")
	l.restart()
	l.Proxy.Do(t, func() error {
		routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Type: unix.RTN_UNREACHABLE}, netlink.RT_FILTER_TYPE)
		if len(routes) != 1 || routes[0].Dst.String() != "100.65.0.0/16" {
			t.Errorf("unreachable are %v, want the new prefix", routes)
		}
		return err
	})
}
