//go:build e2e

package e2e

import (
	_ "embed"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podd/lab"
	"podd/pod"
	"podd/vnet"
	"podd/vnet/vxlan"
)

//go:embed testdata/escape.py
var escapeProgram string

//go:embed testdata/spoof.py
var spoofProgram string

// walls are what a pod cannot do, each a section of escape.py. What takes more
// than one pod is in the other tests here: TestSpoofing, TestForgedLabels,
// TestLimitsHold.
var walls = []string{
	"see or signal others", "mount", "enter namespaces", "reach the kernel", "load BPF", "use io_uring", "change limits",
	"use devices", "read the host's files", "sniff", "change the network", "reach hosts and directory",
}

// Root in a pod sees and reaches nothing of the host, of other pods and of the
// cluster's own machinery; neither when the pod is new nor after a move.
func TestIsolation(t *testing.T) {
	p := newPython(t, "", "inmate", 7000)
	neighbour := newPython(t, "neighbour", "neighbour", 7000)
	p.awaitPort(7000)
	neighbour.awaitPort(7000)
	listener, err := theLab.Listen(t.Context(), lab.Client, "tcp", ":7001")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })

	var forbidden []string
	forbid := func(address netip.Addr, ports ...int) {
		for _, port := range ports {
			forbidden = append(forbidden, fmt.Sprintf("%s:%d", address, port))
		}
	}
	gateway := netip.MustParseAddr("169.254.1.1")
	for _, host := range theLab.HostNames() {
		forbid(theLab.Address(host), 7443, 2379, 22)
	}
	forbid(theLab.Address(lab.Proxy), 7444, 2379, 2380, 53)
	forbid(gateway, 7443, 7444, 2379, 2380, 22)
	allowed := []string{
		theLab.Address(lab.Client).String() + ":7001",
		neighbour.public(7000),
		fmt.Sprintf("%s:7000", neighbour.inspect().VirtualAddress),
		gateway.String() + ":53",
	}
	argv := append([]string{"/usr/bin/python3", "-c", escapeProgram}, forbidden...)
	argv = append(append(argv, "--"), allowed...)

	const privileges = `grep -E "^(Cap|NoNewPrivs|Seccomp|Uid|Gid|Groups)" /proc/$(pgrep -o python3)/status`
	before := p.shell(privileges)
	if !strings.Contains(before, "Seccomp:\t2") {
		t.Errorf("the main command has no system call filter:\n%s", before)
	}
	attempt := func(where string) {
		output := p.exec(argv...)
		for _, wall := range walls {
			t.Run(strings.ReplaceAll(wall+" "+where, " ", "-"), func(t *testing.T) {
				tried := 0
				for line := range strings.Lines(output) {
					if what, ok := strings.CutPrefix(line, wall+": "); ok {
						t.Error(strings.TrimSpace(what))
					}
					if count, ok := strings.CutPrefix(line, wall+" tried "); ok {
						tried, _ = strconv.Atoi(strings.TrimSpace(count))
					}
				}
				if tried == 0 {
					t.Errorf("nothing was tried: %s", output)
				}
			})
		}
	}
	attempt("in a new pod")
	p.move("b")
	attempt("in a moved pod")
	if after := p.shell(privileges); after != before {
		t.Errorf("the main command's privileges have changed with the move:\n%s\nbefore\n%s", after, before)
	}
	for _, other := range []*testPod{p, neighbour} {
		if got := dialLines(t, other.public(7000)).ask("alive"); !strings.HasSuffix(got, " 1 alive") {
			t.Errorf("%s answers %q", other.name, got)
		}
	}
}

// Packets with an address that is not the pod's own get nowhere: root in the pod
// can't send them, and the proxy would not pass them on.
func TestSpoofing(t *testing.T) {
	p := newPython(t, "", "inmate", 7000)
	neighbour := newPython(t, "neighbour", "neighbour", 7000)
	p.awaitPort(7000)
	neighbour.awaitPort(7000)
	own, other := p.inspect(), neighbour.inspect()
	client := theLab.Address(lab.Client)

	// Datagrams to this port are the attempts; honest ones go to the next.
	const port = 7777
	attempts := func(packet packet) bool { return packet.incoming && packet.toPort == port }
	sniffers := map[string]*sniffer{
		"the client":    sniff(t, theLab.Namespace(lab.Client), "uplink", attempts),
		"the neighbour": sniff(t, fmt.Sprintf("%s/netns/%s-%d", theLab.RunDir("a"), neighbour.name, other.Epoch), vnet.NIC, attempts),
		"host b":        sniff(t, theLab.Namespace("b"), "uplink", attempts),
	}
	honest := sniff(t, theLab.Namespace(lab.Client), "uplink", func(packet packet) bool { return packet.incoming && packet.toPort == port+1 })
	neighbours := sniff(t, fmt.Sprintf("%s/netns/%s-%d", theLab.RunDir("a"), neighbour.name, other.Epoch), vnet.NIC,
		func(packet packet) bool { return packet.incoming && packet.toPort == port+1 })

	targets := []netip.Addr{client, other.VirtualAddress, other.PublicAddress, theLab.Address("b"), theLab.Address(lab.Proxy)}
	sources := []netip.Addr{other.VirtualAddress, other.PublicAddress, own.PublicAddress, theLab.Address("a"), theLab.Address(lab.Proxy), client, netip.MustParseAddr("203.0.113.7")}
	argv := []string{"/usr/bin/python3", "-c", spoofProgram, fmt.Sprint(port), join(targets), join(sources)}
	for _, host := range []string{"a", "b"} {
		if own.Host != host {
			p.move(host)
		}
		// After the attempts, honest datagrams by the same way: when these have
		// arrived, the attempts would have.
		count, seen := honest.matched(), neighbours.matched()
		// As if the pod could send anything.
		path := fmt.Sprintf("%s/netns/%s-%d", theLab.RunDir(host), p.name, p.inspect().Epoch)
		for _, target := range targets {
			for _, source := range sources {
				sendRaw(t, path, target, ipv4(unix.IPPROTO_UDP, source, target, datagram(port, port)))
			}
		}
		if got := p.exec(argv...); got != "refused" {
			t.Errorf("on host %s raw packets were %s", host, got)
		}
		until(t, "an honest datagram has arrived", func() error {
			if honest.matched() == count || neighbours.matched() == seen {
				return fmt.Errorf("%d at the client and %d at the neighbour since then", honest.matched()-count, neighbours.matched()-seen)
			}
			return nil
		})
	}
	for where, s := range sniffers {
		s.requireNone(t, "forged packets at "+where)
	}
}

// Packets of the overlay itself, made by a pod, are not taken for those of a host:
// the label in them could be any pod's.
func TestForgedLabels(t *testing.T) {
	p := newPython(t, "", "inmate", 7000)
	neighbour := newPython(t, "neighbour", "neighbour", 7000)
	p.awaitPort(7000)
	neighbour.awaitPort(7000)
	other := neighbour.inspect()
	client := theLab.Address(lab.Client)
	const port = 7779
	forged := func(packet packet) bool { return packet.incoming && packet.toPort == port }
	path := fmt.Sprintf("%s/netns/%s-%d", theLab.RunDir("a"), neighbour.name, other.Epoch)
	victim := sniff(t, path, vnet.NIC, forged)
	honest := sniff(t, path, vnet.NIC, func(packet packet) bool { return packet.incoming && packet.toPort == port+1 })
	uplinks := map[string]*sniffer{}
	for _, node := range []string{"a", "b", lab.Client} {
		uplinks[node] = sniff(t, theLab.Namespace(node), "uplink", forged)
	}
	// The inner packets go both ways: to the neighbour, and out as if from it.
	for _, inner := range []struct {
		from, to       netip.Addr
		fromMAC, toMAC net.HardwareAddr
		label          pod.Label
	}{
		{client, other.VirtualAddress, vxlan.ProxyMAC, vxlan.PodMAC, other.Label},
		{other.VirtualAddress, client, vxlan.PodMAC, vxlan.ProxyMAC, other.Label},
		{other.VirtualAddress, client, vxlan.PodMAC, vxlan.ProxyMAC, p.inspect().Label},
	} {
		frame := vxlanFrame(inner.label, inner.fromMAC, inner.toMAC, ipv4(unix.IPPROTO_UDP, inner.from, inner.to, datagram(port, port)))
		for _, outer := range []netip.Addr{theLab.Address("a"), theLab.Address("b"), theLab.Address(lab.Proxy), netip.MustParseAddr("169.254.1.1"), other.VirtualAddress, other.PublicAddress} {
			p.exec("/usr/bin/python3", "-c", `import socket, sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes.fromhex(sys.argv[2]), (sys.argv[1], int(sys.argv[3])))`,
				outer.String(), hex.EncodeToString(frame), fmt.Sprint(vxlan.DefaultPort))
		}
	}
	// An honest datagram by the same way: when it has arrived, the others would have.
	until(t, "an honest datagram has arrived", func() error {
		p.exec("/usr/bin/python3", "-c", `import socket, sys
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"honest", (sys.argv[1], int(sys.argv[2])))`, other.VirtualAddress.String(), fmt.Sprint(port+1))
		if honest.matched() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	victim.requireNone(t, "forged packets at the neighbour")
	for node, s := range uplinks {
		s.cancel()
		s.done.Wait()
		if n := s.matched(); n > 0 {
			t.Errorf("%d inner packets left the overlay at %s: %v", n, node, s.examples)
		}
	}
}

// vxlanFrame is the payload of a datagram of VXLAN (RFC 7348, section 5).
func vxlanFrame(label pod.Label, from, to net.HardwareAddr, packet []byte) []byte {
	b := []byte{8, 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, uint32(label)<<8)
	b = append(append(b, to...), from...)
	return append(binary.BigEndian.AppendUint16(b, unix.ETH_P_IP), packet...)
}

//go:embed testdata/exceed.py
var exceedProgram string

// A pod gets no more of the machine than its limits say, neither when it is new
// nor after a move.
func TestLimitsHold(t *testing.T) {
	p := newPod(t, "", "--memory", "96m", "--pids", "40", "--cpus", "0.25", "--", "/usr/bin/python3", "-c", pythonServer, "inmate", "7000")
	address := p.awaitPort(7000)
	alive := dialLines(t, address)
	for _, where := range []string{"in a new pod", "in a moved pod"} {
		for limit, want := range map[string]string{"memory": "killed", "pids": "refused", "cpu": "within"} {
			if got := p.exec("/usr/bin/python3", "-c", exceedProgram, limit); got != want {
				t.Errorf("%s: %s: %s, want %s", where, limit, got, want)
			}
		}
		if got := alive.ask("alive"); !strings.HasSuffix(got, " alive") {
			t.Errorf("%s the main command answers %q", where, got)
		}
		if p.inspect().Host == "a" {
			p.move("b")
		}
	}
}

func join(addresses []netip.Addr) string {
	var text []string
	for _, a := range addresses {
		text = append(text, net.IP(a.AsSlice()).String())
	}
	return strings.Join(text, ",")
}
