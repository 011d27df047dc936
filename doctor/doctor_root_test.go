//go:build root

package doctor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"podd/vnet/vnettest"
)

// in runs a command in a namespace.
func in(t *testing.T, n vnettest.Node, command string) {
	t.Helper()
	n.Do(t, func() error {
		args := strings.Fields(command)
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", command, err, out)
		}
		return nil
	})
}

// TestPath measures a path while its links change.
func TestPath(t *testing.T) {
	top := vnettest.New(t, 1)
	host, proxy := top.Hosts[0], top.Proxy
	look := func() (p Path) {
		host.Do(t, func() error {
			p = LookAtPath(t.Context(), "proxy p", host.Address, proxy.Address)
			return nil
		})
		if p.LookErr != nil {
			t.Fatal(p.LookErr)
		}
		return p
	}
	expect := func(probed int, severity Severity, says string) {
		t.Helper()
		p := look()
		f := p.Judge()[0]
		if p.Probed != probed || f.Severity != severity || !strings.Contains(f.Detail+" "+f.Remedy, says) {
			t.Errorf("measured %d (%v), found %+v; want %d and %s about %q", p.Probed, p.ProbeErr, f, probed, severity, says)
		}
	}
	// New links may lose what is sent in their first second.
	for range 10 {
		if look().Probed == 1500 {
			break
		}
	}
	expect(1500, OK, "1500 bytes pass")
	if p := look(); p.Interface != "uplink" || p.Owner != "uplink" || p.InterfaceMTU != 1500 {
		t.Errorf("the path is %+v", p)
	}
	// The router tells that its link to the proxy is narrow.
	in(t, top.Router, "ip link set proxy mtu 1400")
	expect(1400, Warning, "at most 1400 bytes pass")
	// Some routers don't.
	in(t, top.Router, "iptables -A OUTPUT -p icmp --icmp-type fragmentation-needed -j DROP")
	expect(1400, Warning, "tracepath -n 10.10.0.2")
	in(t, top.Router, "ip link set proxy mtu 1500")
	in(t, host, "ip link set uplink mtu 1300")
	expect(1280, Warning, "ip link set dev uplink mtu 1500")
	in(t, host, "ip link set uplink mtu 1500")
	in(t, proxy, "iptables -A INPUT -p icmp -j DROP")
	expect(0, OK, "could not be measured: 10.10.0.2 does not answer pings")
	in(t, host, "ip route add unreachable 10.10.0.2/32")
	host.Do(t, func() error {
		if f := LookAtPath(t.Context(), "proxy p", host.Address, proxy.Address).Judge()[0]; f.Severity != Error || !strings.Contains(f.Remedy, "ip route get 10.10.0.2") {
			t.Errorf("without a route: %+v", f)
		}
		return nil
	})
}

// TestKernel: this machine runs pods, so its kernel can do everything, and what
// was tried leaves no trace. A directory that can't hold pods is noticed.
func TestKernel(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "poddtest-doctor-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	before, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range LookAtKernel(dir).Judge() {
		if f.Severity != OK {
			t.Errorf("found %+v", f)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if after, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(after), dir) && !strings.Contains(string(before), dir) {
		t.Errorf("a mount was left behind (%v)", err)
	}
	findings := LookAtKernel("/proc").Judge()
	if len(findings) != 1 || findings[0].Severity != Error || !strings.Contains(findings[0].Detail, "overlay") {
		t.Errorf("in a place where no pod can be: %+v", findings)
	}
}

// TestParameters reads what was set in a namespace.
func TestParameters(t *testing.T) {
	top := vnettest.New(t, 0)
	top.Proxy.Do(t, func() error {
		p := LookAtParameters(ProxyParameters())
		if p.Err != nil || p.Values["net/ipv4/ip_forward"] != 0 {
			t.Errorf("parameters are %+v", p)
		}
		if f := p.Judge()[0]; f.Severity != Error || !strings.HasPrefix(f.Remedy, "sysctl -w net.ipv4.ip_forward=1 ") {
			t.Errorf("found %+v", f)
		}
		return nil
	})
	for _, facts := range []Facts{LookAtCapabilities(), LookAtParameters(HostParameters(1)), LookAtCgroups(), LookAtSpace("tests", "/"), LookAtMemory()} {
		for _, f := range facts.Judge() {
			t.Logf("%+v", f)
			if strings.HasPrefix(f.Detail, "not known") {
				t.Errorf("%T: %s", facts, f.Detail)
			}
		}
	}
}
