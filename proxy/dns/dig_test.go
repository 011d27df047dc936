package dns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"podd/directory"
)

// dig asks as a person would. Loopback stands for a client; with the virtual
// prefix on loopback it stands for a pod.
func dig(t *testing.T, at netip.AddrPort, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	all := append([]string{"@" + at.Addr().String(), "-p", fmt.Sprint(at.Port()), "+tries=1", "+time=10"}, args...)
	out, err := exec.CommandContext(ctx, "dig", all...).CombinedOutput()
	if err != nil {
		t.Fatalf("dig %s (package bind9-dnsutils): %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func TestDig(t *testing.T) {
	at := serve(t, handler(testView()))
	for _, c := range []struct {
		args string
		want []string // regular expressions
	}{
		{"alice.pods.internal", []string{`status: NOERROR`, `flags: qr aa rd;`, `alice\.pods\.internal\.\s+5\s+IN\s+A\s+198\.18\.0\.2`, `udp: 1232`}},
		{"+tcp AlIcE.PODS.internal", []string{`AlIcE\.PODS\.internal\.\s+5\s+IN\s+A\s+198\.18\.0\.2`, `\(TCP\)`}},
		{"+noedns alice.pods.internal", []string{`ADDITIONAL: 0`, `198\.18\.0\.2`}},
		{"alice.pods.internal AAAA", []string{`status: NOERROR`, `ANSWER: 0`, `IN\s+SOA\s+ns\.dns\.pods\.internal\.`}},
		{"nobody.pods.internal", []string{`status: NXDOMAIN`, `IN\s+SOA`}},
		{"example.com", []string{`status: REFUSED`}},
		{"pods.internal SOA", []string{`ns\.dns\.pods\.internal\. hostmaster\.pods\.internal\. 7 3600 600 86400 5`}},
		{"pods.internal NS", []string{`IN\s+NS\s+ns\.dns\.pods\.internal\.`}},
		{"-x 198.18.0.2", []string{`status: NOERROR`, `PTR\s+alice\.pods\.internal\.`}},
		{"-x 100.64.1.255", []string{`PTR\s+bob\.pods\.internal\.`}},
		{"-x 198.18.0.77", []string{`status: NXDOMAIN`}},
		{"-x 203.0.113.7", []string{`status: REFUSED`}},
		{"alice.pods.internal ANY", []string{`HINFO\s+"RFC8482"`}},
		{"-c CH version.bind TXT", []string{`status: REFUSED`}},
		{"+opcode=notify pods.internal SOA", []string{`status: NOTIMP`}},
		{"+edns=1 +noednsnegotiation alice.pods.internal", []string{`status: BADVERS`}},
		{"+header-only", []string{`status: FORMERR`}},
	} {
		out := dig(t, at, strings.Fields(c.args)...)
		for _, want := range c.want {
			if !regexp.MustCompile(want).MatchString(out) {
				t.Errorf("dig %s: no %q in\n%s", c.args, want, out)
			}
		}
	}
}

// TestDigAsPod asks from an address in the virtual prefix.
func TestDigAsPod(t *testing.T) {
	upstream := serve(t, dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		reply := new(dns.Msg).SetReply(q)
		switch q.Question[0].Name {
		case "example.com.":
			reply.Answer = []dns.RR{address("example.com.", netip.MustParseAddr("203.0.113.80"))}
		case "big.example.com.":
			for i := range 200 {
				reply.Answer = append(reply.Answer, address("big.example.com.", netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})))
			}
		default:
			reply.Rcode = dns.RcodeNameError
		}
		reply.SetEdns0(udpSize, false)
		size := udpSize
		if w.RemoteAddr().Network() == "tcp" {
			size = dns.MaxMsgSize
		}
		reply.Truncate(size)
		_ = w.WriteMsg(reply)
	}))
	h := handler(viewOf("198.18.0.0/16", "127.0.0.0/16", map[string]uint32{"alice": 2}))
	h.Upstreams = []netip.AddrPort{deadEnd(t), upstream}
	at := serve(t, h)
	for args, want := range map[string]string{
		"alice.pods.internal":         `\sA\s+127\.0\.0\.2`,
		"ns.dns.pods.internal":        `\sA\s+169\.254\.1\.1`,
		"example.com":                 `(?s)flags: qr rd ra;.*\sA\s+203\.0\.113\.80`,
		"+tcp example.com":            `\sA\s+203\.0\.113\.80`,
		"+ignore big.example.com":     `flags: qr tc rd ra;`,
		"big.example.com":             `(?s)ANSWER: 200.*\(TCP\)`, // dig comes back by itself
		"no.such.example.com":         `status: NXDOMAIN`,
		"carol.pods.internal":         `status: NXDOMAIN`,
		"-x 203.0.113.7":              `status: NXDOMAIN`,
		"+noedns alice.pods.internal": `ADDITIONAL: 0`,
	} {
		if out := dig(t, at, strings.Fields(args)...); !regexp.MustCompile(want).MatchString(out) {
			t.Errorf("dig %s: no %q in\n%s", args, want, out)
		}
	}
	lonely := handler(h.View())
	lonely.Upstreams = h.Upstreams[:1]
	if out := dig(t, serve(t, lonely), "example.com"); !strings.Contains(out, "status: SERVFAIL") {
		t.Errorf("no upstream answers:\n%s", out)
	}
}

// deadEnd is an address at which nobody answers: nothing listens there any more.
func deadEnd(t *testing.T) netip.AddrPort {
	t.Helper()
	p, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	return p.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestGoClient(t *testing.T) {
	at := serve(t, handler(testView()))
	r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, at.String())
	}}
	addrs, err := r.LookupNetIP(t.Context(), "ip4", "bob.pods.internal.")
	if err != nil || len(addrs) != 1 || addrs[0].Unmap().String() != "198.18.1.255" {
		t.Errorf("bob is %v (%v)", addrs, err)
	}
	names, err := r.LookupAddr(t.Context(), "198.18.0.2")
	if err != nil || len(names) != 1 || names[0] != "alice.pods.internal." {
		t.Errorf("198.18.0.2 is %v (%v)", names, err)
	}
	var missing *net.DNSError
	if _, err := r.LookupHost(t.Context(), "nobody.pods.internal."); !errors.As(err, &missing) || !missing.IsNotFound {
		t.Errorf("an unknown name: %v", err)
	}
}

// TestFollowsDirectory: the answer is the current view's.
func TestFollowsDirectory(t *testing.T) {
	views := make(chan *directory.View, 1)
	h := &Handler{Nameserver: fromClient, View: func() *directory.View {
		v := <-views
		views <- v
		return v
	}}
	views <- testView()
	at := serve(t, h)
	if out := dig(t, at, "carol.pods.internal"); !strings.Contains(out, "NXDOMAIN") {
		t.Error(out)
	}
	<-views
	views <- viewOf("198.18.0.0/16", "100.64.0.0/16", map[string]uint32{"carol": 9})
	if out := dig(t, at, "+short", "carol.pods.internal"); out != "198.18.0.9\n" {
		t.Error(out)
	}
}

func TestPortInUse(t *testing.T) {
	at := serve(t, handler(nil))
	_, err := Listen(t.Context(), []netip.AddrPort{at}, handler(nil), nil)
	if err == nil || !strings.Contains(err.Error(), at.String()) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("error is %v", err)
	}
}
