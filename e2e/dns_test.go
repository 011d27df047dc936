//go:build e2e

package e2e

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"podd/lab"
)

// The name of a pod means its public address outside and its virtual one in
// other pods, before a move and after it; once the pod is removed it means nothing.
func TestDNS(t *testing.T) {
	named := newPython(t, "named", "named", 7000)
	asking := newPython(t, "asking", "asking", 7000)
	v := named.inspect()
	name := named.name + "." + lab.Zone
	server := "@" + theLab.Address(lab.Proxy).String()

	outside := func(args ...string) string {
		t.Helper()
		return strings.TrimSpace(inClient(t, append([]string{"dig", "+short", server}, args...)...))
	}
	// Inside no server is named: resolv.conf does.
	inside := func(args ...string) string {
		t.Helper()
		return asking.exec(append([]string{"dig", "+short"}, args...)...)
	}
	check := func() {
		t.Helper()
		for _, question := range []struct {
			what, got, want string
		}{
			{"outside", outside(name), v.PublicAddress.String()},
			{"outside, over TCP", outside("+tcp", name), v.PublicAddress.String()},
			{"outside, in capitals", outside(strings.ToUpper(name)), v.PublicAddress.String()},
			{"outside, in reverse", outside("-x", v.PublicAddress.String()), name + "."},
			{"inside", inside(name), v.VirtualAddress.String()},
			{"inside, over TCP", inside("+tcp", name), v.VirtualAddress.String()},
			{"inside, by its short name", inside("+search", named.name), v.VirtualAddress.String()},
			{"inside, in reverse", inside("-x", v.VirtualAddress.String()), name + "."},
			{"in the pod itself", named.exec("dig", "+short", name), v.VirtualAddress.String()},
			{"by the C library", strings.Fields(asking.exec("getent", "ahostsv4", named.name))[0], v.VirtualAddress.String()},
		} {
			if question.got != question.want {
				t.Errorf("%s the name is %q; want %q", question.what, question.got, question.want)
			}
		}
	}
	until(t, "the name is known", func() error {
		if got := outside(name); got != v.PublicAddress.String() {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
	check()
	named.move("b")
	check()
	asking.move("c")
	check()

	// A name is what one connects to: from the client by its answer, from a
	// pod by its own resolver.
	address := netip.AddrPortFrom(netip.MustParseAddr(outside(name)), 7000).String()
	if got := dialLines(t, address).ask("hello"); got != "named 1 hello" {
		t.Errorf("reply %q", got)
	}
	hello := asking.exec("/usr/bin/python3", "-c", `import socket, sys
with socket.create_connection((sys.argv[1], 7000)) as s:
    s.sendall(b"hello\n")
    print(s.makefile().readline(), end="")`, named.name)
	if hello != "named 1 hello" {
		t.Errorf("reply %q", hello)
	}

	serial := func() int {
		t.Helper()
		n, err := strconv.Atoi(strings.Fields(outside("SOA", lab.Zone))[2])
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := serial()
	mustPodctl(t, "rm", "-f", named.name)
	until(t, "the name of the removed pod is unknown", func() error {
		if out := inClient(t, "dig", server, name); !strings.Contains(out, "status: NXDOMAIN") {
			return fmt.Errorf("dig says %s", out)
		}
		return nil
	})
	if after := serial(); after <= before {
		t.Errorf("the zone's serial number is %d; it was %d before a pod was removed", after, before)
	}
	named.removed = true
}
