package dns

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"

	"github.com/miekg/dns"

	"podd/directory"
	"podd/pod"
)

// fromPod and fromClient are source addresses of either audience.
var (
	fromPod    = netip.MustParseAddr("100.64.0.9")
	fromClient = netip.MustParseAddr("192.0.2.10")
)

// testView has the pods alice, dns-like names apart, and bob.
func testView() *directory.View {
	return viewOf("198.18.0.0/16", "100.64.0.0/16", map[string]uint32{"alice": 2, "bob": 0x1ff})
}

func viewOf(public, virtual string, pods map[string]uint32) *directory.View {
	v := &directory.View{
		Revision: 1<<32 + 7,
		Cluster: &directory.Cluster{
			Public: netip.MustParsePrefix(public), Virtual: netip.MustParsePrefix(virtual), Zone: "pods.internal",
		},
		Pods: map[string]*pod.Pod{},
	}
	for name, offset := range pods {
		v.Pods[name] = &pod.Pod{
			Spec:    pod.Spec{Name: name},
			Binding: pod.Binding{Public: add(v.Cluster.Public, offset), Virtual: add(v.Cluster.Virtual, offset)},
			Phase:   pod.PhaseRunning,
		}
	}
	return v
}

func add(p netip.Prefix, offset uint32) netip.Addr {
	b := p.Addr().As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n += offset
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

func handler(v *directory.View) *Handler {
	return &Handler{
		View:       func() *directory.View { return v },
		Nameserver: netip.MustParseAddr("10.10.0.2"),
	}
}

// serve runs a server on loopback and gives its address.
func serve(t *testing.T, h dns.Handler) netip.AddrPort {
	t.Helper()
	s, err := Listen(t.Context(), []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}, h, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() {
		if err := s.Serve(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wait.Wait()
	})
	return s.Addrs()[0]
}

func ask(h *Handler, name string, qtype uint16, from netip.Addr) *dns.Msg {
	return h.Answer(context.Background(), new(dns.Msg).SetQuestion(name, qtype), from, false)
}

func TestAnswers(t *testing.T) {
	h := handler(testView())
	for _, c := range []struct {
		name  string
		qtype uint16
		from  netip.Addr
		rcode int
		want  string // data of the only answer; "" is NODATA with a SOA
	}{
		{"alice.pods.internal.", dns.TypeA, fromClient, dns.RcodeSuccess, "198.18.0.2"},
		{"alice.pods.internal.", dns.TypeA, fromPod, dns.RcodeSuccess, "100.64.0.2"},
		{"ALICE.Pods.Internal.", dns.TypeA, fromPod, dns.RcodeSuccess, "100.64.0.2"},
		{"alice.pods.internal.", dns.TypeAAAA, fromClient, dns.RcodeSuccess, ""},
		{"alice.pods.internal.", dns.TypeMX, fromPod, dns.RcodeSuccess, ""},
		{"alice.pods.internal.", dns.TypeANY, fromClient, dns.RcodeSuccess, `"RFC8482" ""`},
		{"carol.pods.internal.", dns.TypeA, fromClient, dns.RcodeNameError, ""},
		{"carol.pods.internal.", dns.TypeANY, fromClient, dns.RcodeNameError, ""},
		{"www.alice.pods.internal.", dns.TypeA, fromClient, dns.RcodeNameError, ""},
		{`al\105ce.pods.internal.`, dns.TypeA, fromClient, dns.RcodeNameError, ""}, // unpacked messages have no such escape
		{"pods.internal.", dns.TypeA, fromClient, dns.RcodeSuccess, ""},
		{"pods.internal.", dns.TypeNS, fromClient, dns.RcodeSuccess, "ns.dns.pods.internal."},
		{"pods.internal.", dns.TypeSOA, fromPod, dns.RcodeSuccess, "ns.dns.pods.internal. hostmaster.pods.internal. 7 3600 600 86400 5"},
		{"ns.dns.pods.internal.", dns.TypeA, fromClient, dns.RcodeSuccess, "10.10.0.2"},
		{"ns.dns.pods.internal.", dns.TypeA, fromPod, dns.RcodeSuccess, "169.254.1.1"},
		{"dns.pods.internal.", dns.TypeA, fromClient, dns.RcodeSuccess, ""},

		{"2.0.18.198.in-addr.arpa.", dns.TypePTR, fromClient, dns.RcodeSuccess, "alice.pods.internal."},
		{"255.1.64.100.in-addr.arpa.", dns.TypePTR, fromPod, dns.RcodeSuccess, "bob.pods.internal."},
		{"2.0.18.198.IN-ADDR.ARPA.", dns.TypeTXT, fromClient, dns.RcodeSuccess, ""},
		{"3.0.18.198.in-addr.arpa.", dns.TypePTR, fromClient, dns.RcodeNameError, ""},
		{"1.2.0.18.198.in-addr.arpa.", dns.TypePTR, fromClient, dns.RcodeNameError, ""},
		{"02.0.18.198.in-addr.arpa.", dns.TypePTR, fromClient, dns.RcodeNameError, ""},
		{"0.18.198.in-addr.arpa.", dns.TypePTR, fromClient, dns.RcodeSuccess, ""},
		{"18.198.in-addr.arpa.", dns.TypeNS, fromClient, dns.RcodeSuccess, "ns.dns.pods.internal."},
	} {
		reply := ask(h, c.name, c.qtype, c.from)
		if reply.Rcode != c.rcode || !reply.Authoritative {
			t.Errorf("%s %s: %s, authoritative %v", c.name, dns.TypeToString[c.qtype], dns.RcodeToString[reply.Rcode], reply.Authoritative)
			continue
		}
		if c.want == "" {
			if len(reply.Answer) != 0 || len(reply.Ns) != 1 || reply.Ns[0].Header().Rrtype != dns.TypeSOA {
				t.Errorf("%s %s: want only a SOA, got %v", c.name, dns.TypeToString[c.qtype], reply)
			}
			continue
		}
		if len(reply.Answer) != 1 || len(reply.Ns) != 0 {
			t.Errorf("%s %s: want one answer, got %v", c.name, dns.TypeToString[c.qtype], reply)
			continue
		}
		rr := reply.Answer[0]
		if data := rr.String()[len(rr.Header().String()):]; data != c.want {
			t.Errorf("%s %s: got %q, want %q", c.name, dns.TypeToString[c.qtype], data, c.want)
		}
		if rr.Header().Name != c.name || rr.Header().Ttl != ttl {
			t.Errorf("%s: the answer is for %s with TTL %d", c.name, rr.Header().Name, rr.Header().Ttl)
		}
	}
}

// TestPodNamesComeFirst: no pod's name is taken by ours.
func TestPodNamesComeFirst(t *testing.T) {
	h := handler(viewOf("198.18.0.0/16", "100.64.0.0/16", map[string]uint32{"dns": 2, "ns": 3}))
	for name, want := range map[string]string{
		"dns.pods.internal.": "198.18.0.2", "ns.pods.internal.": "198.18.0.3", "ns.dns.pods.internal.": "10.10.0.2",
	} {
		reply := ask(h, name, dns.TypeA, fromClient)
		if len(reply.Answer) != 1 || reply.Answer[0].(*dns.A).A.String() != want {
			t.Errorf("%s is %v, want %s", name, reply.Answer, want)
		}
	}
}

func TestRefused(t *testing.T) {
	h := handler(testView())
	for _, name := range []string{
		"example.com.", ".", "internal.", "xpods.internal.", "arpa.", "in-addr.arpa.", "198.in-addr.arpa.",
		"1.0.19.198.in-addr.arpa.", "1.0.18.0198.in-addr.arpa.", "1.0.18.500.in-addr.arpa.", "x.y.in-addr.arpa.",
	} {
		if reply := ask(h, name, dns.TypeA, fromClient); reply.Rcode != dns.RcodeRefused || reply.Authoritative {
			t.Errorf("%s from a client: %s", name, dns.RcodeToString[reply.Rcode])
		}
		if reply := ask(h, name, dns.TypeA, fromPod); reply.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s from a pod, without upstreams: %s", name, dns.RcodeToString[reply.Rcode])
		}
	}
	if reply := ask(h, "pods.internal.", dns.TypeAXFR, fromClient); reply.Rcode != dns.RcodeRefused {
		t.Errorf("AXFR: %s", dns.RcodeToString[reply.Rcode])
	}
}

// TestReverseOfAnyLength checks prefixes that don't end at an octet.
func TestReverseOfAnyLength(t *testing.T) {
	for _, c := range []struct {
		public, virtual string
		offset          uint32
		name, apex      string
	}{
		{"198.18.0.0/15", "100.64.0.0/15", 0x10005, "5.0.19.198.in-addr.arpa.", "19.198.in-addr.arpa."},
		{"198.18.16.0/20", "100.64.16.0/20", 0x305, "5.19.18.198.in-addr.arpa.", "19.18.198.in-addr.arpa."},
		{"198.18.1.8/29", "100.64.1.8/29", 3, "11.1.64.100.in-addr.arpa.", "11.1.64.100.in-addr.arpa."},
		{"11.0.0.0/8", "10.0.0.0/8", 0x10203, "3.2.1.11.in-addr.arpa.", "11.in-addr.arpa."},
	} {
		v := viewOf(c.public, c.virtual, map[string]uint32{"x": c.offset})
		if got := reverseApex(v.Cluster, c.name); got != c.apex {
			t.Errorf("%s: apex of %s is %q, want %q", c.public, c.name, got, c.apex)
		}
		if reply := ask(handler(v), c.name, dns.TypePTR, fromClient); len(reply.Answer) != 1 {
			t.Errorf("%s: %v", c.name, reply)
		}
		if reply := ask(handler(v), c.apex, dns.TypeSOA, fromClient); len(reply.Answer) != 1 {
			t.Errorf("%s: %v", c.apex, reply)
		}
	}
	v := viewOf("198.18.1.8/29", "100.64.1.8/29", nil)
	if reply := ask(handler(v), "16.1.18.198.in-addr.arpa.", dns.TypePTR, fromClient); reply.Rcode != dns.RcodeRefused {
		t.Errorf("an address outside of the prefix: %s", dns.RcodeToString[reply.Rcode])
	}
}

func TestBadQueries(t *testing.T) {
	h := handler(testView())
	query := func(change func(*dns.Msg)) *dns.Msg {
		m := new(dns.Msg).SetQuestion("alice.pods.internal.", dns.TypeA)
		change(m)
		return h.Answer(context.Background(), m, fromClient, false)
	}
	for what, c := range map[string]struct {
		rcode  int
		change func(*dns.Msg)
	}{
		"notify":        {dns.RcodeNotImplemented, func(m *dns.Msg) { m.Opcode = dns.OpcodeNotify }},
		"update":        {dns.RcodeNotImplemented, func(m *dns.Msg) { m.Opcode = dns.OpcodeUpdate }},
		"no question":   {dns.RcodeFormatError, func(m *dns.Msg) { m.Question = nil }},
		"two questions": {dns.RcodeFormatError, func(m *dns.Msg) { m.Question = append(m.Question, m.Question[0]) }},
		"class CH":      {dns.RcodeRefused, func(m *dns.Msg) { m.Question[0].Qclass = dns.ClassCHAOS }},
		"type TSIG":     {dns.RcodeFormatError, func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTSIG }},
		"EDNS 1": {dns.RcodeBadVers, func(m *dns.Msg) {
			m.SetEdns0(4096, false)
			m.IsEdns0().SetVersion(1)
		}},
	} {
		reply := query(c.change)
		if reply.Rcode != c.rcode || len(reply.Answer) != 0 {
			t.Errorf("%s: %v", what, reply)
		}
		if _, err := reply.Pack(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if reply := query(func(m *dns.Msg) { m.Response = true }); reply != nil {
		t.Errorf("a response was answered: %v", reply)
	}
}

func TestNoView(t *testing.T) {
	for what, v := range map[string]*directory.View{"no view": nil, "no cluster": {}} {
		if reply := ask(handler(v), "alice.pods.internal.", dns.TypeA, fromClient); reply.Rcode != dns.RcodeServerFailure {
			t.Errorf("%s: %s", what, dns.RcodeToString[reply.Rcode])
		}
	}
}

// FuzzAnswer feeds any message, from both audiences: the reply must be one that
// can be sent, fits, repeats the question and says something new only about it.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{"alice.pods.internal.", "pods.internal.", "2.0.18.198.in-addr.arpa.", "."} {
		m := new(dns.Msg).SetQuestion(name, dns.TypeANY)
		m.SetEdns0(4096, true)
		packed, err := m.Pack()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packed, true, false)
	}
	h := handler(testView())
	f.Fuzz(func(t *testing.T, data []byte, fromAPod, tcp bool) {
		query := new(dns.Msg)
		if query.Unpack(data) != nil {
			return // refused before it gets to the handler
		}
		from := fromClient
		if fromAPod {
			from = fromPod
		}
		reply := h.Answer(context.Background(), query, from, tcp)
		if reply == nil {
			if !query.Response {
				t.Fatal("no reply")
			}
			return
		}
		packed, err := reply.Pack()
		if err != nil {
			t.Fatalf("%v: %v", err, reply)
		}
		if !tcp && len(packed) > udpSize {
			t.Errorf("%d bytes over UDP", len(packed))
		}
		if reply.Id != query.Id || !reply.Response {
			t.Errorf("reply to another query: %v", reply)
		}
		if reply.Rcode == dns.RcodeSuccess && len(reply.Answer) == 0 && len(reply.Ns) != 1 {
			t.Errorf("neither an answer nor a SOA: %v", reply)
		}
	})
}
