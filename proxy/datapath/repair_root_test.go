//go:build root

package datapath

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"podd/vnet/vnettest"
	"podd/vnet/vxlan"
)

// repair compares the kernel with what the pods' paths should be.
func (l *lab) repair() []Repair {
	l.t.Helper()
	var repairs []Repair
	l.Proxy.Do(l.t, func() (err error) {
		repairs, err = l.datapath.Repair(context.Background(), l.state())
		return err
	})
	return repairs
}

// TestRepair breaks one thing after the other, as an administrator or a
// firewall that is reloaded does, and finds it told and mended.
func TestRepair(t *testing.T) {
	l := newLab(t, 2)
	p, moved := l.addPod(0), l.addPod(1)
	l.set(l.state())
	l.move(moved, 0, true) // leaves a superseded device, which is none of anybody's
	if repairs := l.repair(); len(repairs) != 0 {
		t.Errorf("nothing was changed, and repaired was %v", repairs)
	}
	l.settle()
	vnettest.Serve(t, p.path, ":80", "pod")
	whole := l.snapshot()
	device := deviceName(p.binding.Label)
	for _, c := range []struct{ broken, kind, says string }{
		{"iptables -t nat -F", "rules", "iptables"},
		{"ipset del podproxy-hosts " + l.Hosts[1].Address.String(), "set", l.Hosts[1].Address.String()},
		{"ipset add podproxy-hosts 203.0.113.7", "set", "203.0.113.7 was added"},
		{"ipset flush podproxy-services", "set", serviceSet},
		{"sysctl -q -w net.ipv4.ip_forward=0", "sysctl", "net/ipv4/ip_forward was 0, not 1"},
		{"ip link del " + vxlan.AnchorName, "gateway", vxlan.AnchorName},
		{"ip addr del 169.254.1.1/32 dev " + vxlan.AnchorName, "gateway", "169.254.1.1"},
		{"ip route del unreachable 100.64.0.0/16 metric 4294967295 proto 112", "route", "100.64.0.0/16"},
		{"ip route del " + p.virtual() + " dev " + device + " proto 112", "route", p.virtual()},
		{"ip neigh del " + p.virtual() + " dev " + device, "neighbour", p.virtual()},
		{"ip link set " + device + " down", "device", device},
		{"ip link del " + device, "device", device},
		{"ip link add label777 type vxlan id 777 local " + l.Proxy.Address.String() + " remote 10.10.1.2 dstport 4789", "device", "label777 was added"},
	} {
		l.Proxy.Do(t, func() error {
			args := strings.Fields(c.broken)
			if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w: %s", c.broken, err, out)
			}
			return nil
		})
		repairs, told := l.repair(), false
		for _, r := range repairs {
			told = told || r.Kind == c.kind && strings.Contains(r.Detail, c.says)
		}
		if !told {
			t.Errorf("%s: repaired was %v, want %s: %s", c.broken, repairs, c.kind, c.says)
		}
		if again := l.repair(); len(again) != 0 {
			t.Errorf("%s: a second look repaired %v", c.broken, again)
		}
		l.settle()
		if now := l.snapshot(); now != whole {
			t.Errorf("%s: before:\n%s\nafter the repair:\n%s", c.broken, whole, now)
		}
	}
	c := vnettest.Dial(t, l.Client.Path, p.public()+":80")
	vnettest.ExpectGreeting(t, c, "pod")
}
