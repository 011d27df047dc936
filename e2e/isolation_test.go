//go:build e2e

package e2e

import (
	_ "embed"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podd/lab"
	"podd/vnet"
)

//go:embed testdata/escape.py
var escapeProgram string

//go:embed testdata/spoof.py
var spoofProgram string

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
	forbid(gateway, 7444, 2379, 2380, 22)
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
		t.Helper()
		lines := strings.Split(p.exec(argv...), "\n")
		last := len(lines) - 1
		if !strings.HasPrefix(lines[last], "tried ") {
			t.Fatalf("%s: the attempts did not come to their end: %s", where, lines)
		}
		for _, line := range lines[:last] {
			t.Errorf("%s: %s", where, line)
		}
		t.Logf("%s: %s", where, lines[last])
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

func join(addresses []netip.Addr) string {
	var text []string
	for _, a := range addresses {
		text = append(text, net.IP(a.AsSlice()).String())
	}
	return strings.Join(text, ",")
}
