//go:build e2e

package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podd/lab"
	"podd/pod"
	"podd/vnet"
	"podd/vnet/netns"

	"github.com/vishvananda/netlink"
)

// A pod moves away, another takes its place, and they change places: same
// host, same port, both busy all the time. Neither ever gets a packet of the
// other, from the first moment of each incarnation on.
func TestConflict(t *testing.T) {
	first := newPython(t, "first", "first", 7000)
	toFirst := keepAsking(t, first.awaitPort(7000), countedBy("first"))
	labels := map[pod.Label]bool{first.inspect().Label: true}
	sniffers := map[string]*sniffer{}
	watch := func(p *testPod, host string, epoch pod.Epoch) {
		t.Helper()
		sniffers[fmt.Sprintf("%s on %s", p.name, host)] = sniffPod(t, host, p.name, epoch, p.inspect().VirtualAddress)
	}
	move := func(p *testPod, target string) {
		t.Helper()
		watch(p, target, p.inspect().Epoch+1)
		p.move(target)
		if l := p.inspect().Label; labels[l] {
			t.Errorf("pod %s got label %s, which had been used", p.name, l)
		} else {
			labels[l] = true
		}
	}
	move(first, "b")
	second := newPython(t, "second", "second", 7000)
	watch(second, "a", second.inspect().Epoch)
	if v := second.inspect(); labels[v.Label] || v.VirtualAddress == first.inspect().VirtualAddress {
		t.Errorf("the new pod got a label or address that is used: %+v", v)
	}
	toSecond := keepAsking(t, second.awaitPort(7000), countedBy("second"))
	move(second, "b")
	move(first, "a")
	move(second, "c")
	toFirst.stop()
	toSecond.stop()
	for what, s := range sniffers {
		s.requireNone(t, "strangers' packets at "+what)
	}
}

// The last incarnation of a pod comes to life again where it was, with its
// address and its label. It can't be reached, and nothing it says is heard.
func TestStaleCopy(t *testing.T) {
	alice := newPython(t, "", "alive", 7000)
	bob := newPython(t, "neighbour", "neighbour", 7000)
	address := alice.awaitPort(7000)
	bob.awaitPort(7000)
	busy := keepAsking(t, address, countedBy("alive"))
	quiet := dialLines(t, address)
	quiet.ask("before")

	old := alice.inspect()
	alice.move("b")
	stale := attachStale(t, "a", old)
	reached := sniff(t, stale, vnet.NIC, func(p packet) bool { return p.incoming })
	serveStale(t, stale)

	neighbour := bob.inspect()
	client := netip.MustParseAddrPort(quiet.conn.LocalAddr().String())
	// What the living copy never sends: it answers connections, and none fails.
	alien := func(p packet) bool {
		return p.incoming && (p.source == old.PublicAddress || p.source == old.VirtualAddress) &&
			(p.protocol != unix.IPPROTO_TCP || p.flags&flagRST != 0 || p.flags&(flagSYN|flagACK) == flagSYN)
	}
	atClient := sniff(t, theLab.Namespace(lab.Client), "uplink", alien)
	atNeighbour := sniff(t, fmt.Sprintf("%s/netns/%s-%d", theLab.RunDir("a"), bob.name, neighbour.Epoch), vnet.NIC, alien)
	arrived := sniff(t, theLab.Namespace(lab.Proxy), "uplink", func(p packet) bool { return p.incoming && p.label == old.Label })

	// First while the proxy may still have the old label's device, then
	// without it.
	for _, gone := range []bool{false, true} {
		if gone {
			until(t, "the proxy has deleted the old label's device", func() error { return noLabel(lab.Proxy, old.Label) })
		}
		before := arrived.matched()
		sent := 0
		virtual := netip.AddrPortFrom(old.VirtualAddress, 7000)
		for _, peer := range []netip.AddrPort{client, netip.AddrPortFrom(neighbour.VirtualAddress, 7000), netip.AddrPortFrom(neighbour.PublicAddress, 7000)} {
			for _, p := range [][]byte{
				ipv4(unix.IPPROTO_TCP, virtual.Addr(), peer.Addr(), segment(virtual, peer, flagRST|flagACK)),
				ipv4(unix.IPPROTO_TCP, virtual.Addr(), peer.Addr(), segment(virtual, peer, flagSYN)),
				ipv4(unix.IPPROTO_UDP, virtual.Addr(), peer.Addr(), datagram(7000, peer.Port())),
				ipv4(unix.IPPROTO_ICMP, virtual.Addr(), peer.Addr(), unreachable(peer, virtual)),
				// And with the public address, as if it were translated already.
				ipv4(unix.IPPROTO_TCP, old.PublicAddress, peer.Addr(), segment(netip.AddrPortFrom(old.PublicAddress, 7000), peer, flagRST|flagACK)),
			} {
				sendRaw(t, stale, peer.Addr(), p)
				sent++
			}
		}
		until(t, "what the stale copy says has arrived at the proxy", func() error {
			if n := arrived.matched() - before; n < sent {
				return fmt.Errorf("%d of %d packets", n, sent)
			}
			return nil
		})
		// Whatever the proxy would have let through is ahead of these answers.
		if got := quiet.ask("still there"); !strings.HasPrefix(got, "alive ") {
			t.Errorf("reply %q", got)
		}
		if got := dialLines(t, address).ask("hello"); got != "alive 1 hello" {
			t.Errorf("a new connection is answered %q", got)
		}
		for _, target := range []string{old.VirtualAddress.String(), old.PublicAddress.String(), alice.name + "." + lab.Zone} {
			if got := bob.exec("/usr/bin/python3", "-c", askOnce, target, "7000"); got != "alive 1 hello" {
				t.Errorf("a connection from a pod to %s is answered %q", target, got)
			}
		}
	}
	busy.stop()
	atClient.requireNone(t, "packets of the stale copy at the client")
	atNeighbour.requireNone(t, "packets of the stale copy at a pod")
	reached.requireNone(t, "packets to the stale copy")
}

// askOnce asks a server of lines one question.
const askOnce = `import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as s:
    s.sendall(b"hello\n")
    print(s.makefile().readline().strip())
`

// attachStale makes a network namespace on a host with the NIC that an
// incarnation had, and returns its path.
func attachStale(t *testing.T, host string, old podView) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stale")
	var network *vnet.Network
	err := theLab.Do(host, func() (err error) {
		config := vnet.Config{Physical: theLab.Address(host), Proxy: theLab.Address(lab.Proxy)}
		network, err = vnet.New(config, slog.New(slog.DiscardHandler))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(network.DeleteNamespace(path), network.Close()); err != nil {
			t.Error(err)
		}
	})
	if err := network.CreateNamespace(path); err != nil {
		t.Fatal(err)
	}
	binding := pod.Binding{
		Virtual: old.VirtualAddress, Public: old.PublicAddress, Host: host, Physical: theLab.Address(host), Label: old.Label, Epoch: old.Epoch,
	}
	if err := network.Attach(path, binding, vnet.AttachOptions{}); err != nil {
		t.Fatal(err)
	}
	return path
}

// serveStale answers whoever reaches the namespace at path. A port without a
// server would do so, too, by a reset.
func serveStale(t *testing.T, path string) {
	t.Helper()
	var listener net.Listener
	err := netns.Do(path, func() (err error) {
		listener, err = net.Listen("tcp4", ":7000")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprintln(conn, "stale")
			conn.Close()
		}
	}()
	t.Cleanup(func() { listener.Close(); <-ended })
}

// noLabel is an error while a node has a device of the label.
func noLabel(node string, label pod.Label) error {
	var links []netlink.Link
	err := theLab.Do(node, func() (err error) {
		links, err = netlink.LinkList()
		return err
	})
	if err != nil {
		return err
	}
	for _, link := range links {
		if v, ok := link.(*netlink.Vxlan); ok && v.VxlanId == int(label) {
			return fmt.Errorf("%s is there", v.Name)
		}
	}
	return nil
}

// sendRaw sends a whole IPv4 packet from the namespace at path.
func sendRaw(t *testing.T, path string, to netip.Addr, packet []byte) {
	t.Helper()
	err := netns.Do(path, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to.As4()})
	})
	if err != nil {
		t.Fatal(err)
	}
}

// ipv4 puts a header in front of payload; RFC 791. The kernel fills in the
// checksum.
func ipv4(protocol int, source, target netip.Addr, payload []byte) []byte {
	p := make([]byte, 20, 20+len(payload))
	p[0], p[8], p[9] = 0x45, 64, byte(protocol)
	binary.BigEndian.PutUint16(p[2:], uint16(20+len(payload)))
	copy(p[12:], source.AsSlice())
	copy(p[16:], target.AsSlice())
	return append(p, payload...)
}

// segment is an empty TCP segment; RFC 9293.
func segment(source, target netip.AddrPort, flags byte) []byte {
	s := make([]byte, 20)
	binary.BigEndian.PutUint16(s, source.Port())
	binary.BigEndian.PutUint16(s[2:], target.Port())
	s[12], s[13] = 5<<4, flags
	pseudo := append(append(source.Addr().AsSlice(), target.Addr().AsSlice()...), 0, unix.IPPROTO_TCP, 0, byte(len(s)))
	binary.BigEndian.PutUint16(s[16:], checksum(append(pseudo, s...)))
	return s
}

// datagram is an empty UDP datagram without a checksum; RFC 768.
func datagram(source, target uint16) []byte {
	d := make([]byte, 8)
	binary.BigEndian.PutUint16(d, source)
	binary.BigEndian.PutUint16(d[2:], target)
	binary.BigEndian.PutUint16(d[4:], 8)
	return d
}

// unreachable is an ICMP error, port unreachable, about a segment between two
// ends; RFC 792.
func unreachable(source, target netip.AddrPort) []byte {
	about := ipv4(unix.IPPROTO_TCP, source.Addr(), target.Addr(), segment(source, target, flagACK)[:8])
	m := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, about...)
	binary.BigEndian.PutUint16(m[2:], checksum(m))
	return m
}

// checksum is the one of RFC 1071.
func checksum(data []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(data); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(data[i:]))
	}
	if len(data)%2 == 1 {
		sum += uint32(data[len(data)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}
