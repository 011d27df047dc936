package dns

import (
	"context"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"

	"podd/directory"
	"podd/pod"
)

const (
	// ttl of every record and of negative answers, in seconds.
	ttl = 5
	// udpSize is the largest UDP message sent and said to be accepted: what
	// fits any path without fragments (DNS flag day 2020).
	udpSize = 1232
	// minUDPSize is what every client accepts (RFC 1035, section 4.2.1).
	minUDPSize = 512
)

// Audience is whom a query came from.
type Audience string

const (
	Clients Audience = "clients"
	Pods    Audience = "pods"
)

// Handler answers queries. It implements dns.Handler.
type Handler struct {
	// View is the directory as last seen; nil while it was never seen.
	View func() *directory.View
	// Nameserver is the proxy's own address, as clients reach it.
	Nameserver netip.Addr
	// Upstreams answer pods' queries for names outside.
	Upstreams []netip.AddrPort
	// Observe, if not nil, is told of every answer.
	Observe func(a Audience, rcode int)

	forwarding semaphore
}

// ServeDNS implements dns.Handler.
func (h *Handler) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	source, _ := netip.ParseAddrPort(w.RemoteAddr().String())
	tcp := w.RemoteAddr().Network() == "tcp"
	reply := h.Answer(context.Background(), query, source.Addr().Unmap(), tcp)
	if reply != nil {
		_ = w.WriteMsg(reply) // the client is gone, or asks again
	}
}

// Answer makes the reply to a query that came from source. It is nil when there
// should be none.
func (h *Handler) Answer(ctx context.Context, query *dns.Msg, source netip.Addr, tcp bool) *dns.Msg {
	if query.Response {
		return nil // answering answers could go on forever
	}
	reply := new(dns.Msg).SetReply(query)
	reply.Compress = true
	view := h.View()
	audience := Clients
	if view != nil && view.Cluster != nil && view.Cluster.Virtual.Contains(source) {
		audience = Pods
	}
	if code := check(query); code != dns.RcodeSuccess {
		reply.Rcode = code
	} else if view == nil || view.Cluster == nil {
		reply.Rcode = dns.RcodeServerFailure
	} else if !h.authoritative(reply, view, audience) {
		reply.Rcode = dns.RcodeRefused
		if audience == Pods {
			h.forward(ctx, reply, query, tcp)
		}
	}
	finish(reply, query, tcp)
	if h.Observe != nil {
		h.Observe(audience, reply.Rcode)
	}
	return reply
}

// check refuses what is not a plain question.
func check(query *dns.Msg) int {
	if query.Opcode != dns.OpcodeQuery {
		return dns.RcodeNotImplemented
	}
	if len(query.Question) != 1 {
		return dns.RcodeFormatError
	}
	if opt := query.IsEdns0(); opt != nil && opt.Version() != 0 {
		return dns.RcodeBadVers
	}
	q := query.Question[0]
	if _, ok := dns.IsDomainName(q.Name); !ok {
		return dns.RcodeFormatError
	}
	switch {
	case q.Qclass != dns.ClassINET:
		return dns.RcodeRefused
	case q.Qtype == dns.TypeAXFR, q.Qtype == dns.TypeIXFR:
		return dns.RcodeRefused
	case q.Qtype == dns.TypeOPT, q.Qtype == dns.TypeTSIG, q.Qtype == dns.TypeTKEY, q.Qtype == dns.TypeNone:
		return dns.RcodeFormatError
	}
	return dns.RcodeSuccess
}

// finish adds EDNS (RFC 6891) if the query has it and makes the reply fit.
func finish(reply, query *dns.Msg, tcp bool) {
	size := minUDPSize
	if opt := query.IsEdns0(); opt != nil {
		size = min(max(minUDPSize, int(opt.UDPSize())), udpSize)
		reply.SetEdns0(udpSize, opt.Do())
	}
	if tcp {
		size = dns.MaxMsgSize
	}
	reply.Truncate(size)
}

// authoritative fills in the answer if the name is in one of our zones, and
// reports whether it is.
func (h *Handler) authoritative(reply *dns.Msg, view *directory.View, audience Audience) bool {
	q := reply.Question[0]
	name := dns.CanonicalName(q.Name)
	zone := view.Cluster.Zone + "."
	apex := ""
	var found bool // whether the name exists
	var records []dns.RR
	switch {
	case dns.IsSubDomain(zone, name):
		apex = zone
		records, found = h.forwardZone(view, audience, q.Name, strings.TrimSuffix(strings.TrimSuffix(name, zone), "."))
	case dns.IsSubDomain("in-addr.arpa.", name):
		if apex = reverseApex(view.Cluster, name); apex == "" {
			return false
		}
		records, found = reverseZone(view, q.Name, name)
	default:
		return false
	}
	reply.Authoritative = true
	owner := suffix(q.Name, apex)
	soa := soaRecord(view, owner)
	if name == apex {
		found = true
		records = append(records, soa, &dns.NS{Hdr: header(owner, dns.TypeNS), Ns: nameserver(view)})
	}
	for _, rr := range records {
		if q.Qtype == rr.Header().Rrtype {
			reply.Answer = append(reply.Answer, rr)
		}
	}
	switch {
	case !found:
		reply.Rcode = dns.RcodeNameError
	case q.Qtype == dns.TypeANY:
		// One small record instead of all there is (RFC 8482, section 4.2).
		reply.Answer = []dns.RR{&dns.HINFO{Hdr: header(q.Name, dns.TypeHINFO), Cpu: "RFC8482"}}
	}
	if len(reply.Answer) == 0 {
		reply.Ns = []dns.RR{soa}
	}
	return true
}

// forwardZone looks up what is left of the name before the zone. Records are
// owned by name as it was asked, in its own case.
func (h *Handler) forwardZone(view *directory.View, audience Audience, name, rest string) ([]dns.RR, bool) {
	if p := view.Pods[rest]; p != nil && rest != "" {
		addr := p.Binding.Public
		if audience == Pods {
			addr = p.Binding.Virtual
		}
		return []dns.RR{address(name, addr)}, true
	}
	switch rest {
	case "ns.dns":
		addr := h.Nameserver
		if audience == Pods {
			addr = pod.Gateway
		}
		return []dns.RR{address(name, addr)}, true
	case "dns": // there is something below it
		return nil, true
	}
	return nil, false
}

func nameserver(view *directory.View) string { return "ns.dns." + view.Cluster.Zone + "." }

func soaRecord(view *directory.View, owner string) dns.RR {
	seconds := func(d time.Duration) uint32 { return uint32(d / time.Second) }
	return &dns.SOA{
		Hdr:     header(owner, dns.TypeSOA),
		Ns:      nameserver(view),
		Mbox:    "hostmaster." + view.Cluster.Zone + ".",
		Serial:  uint32(view.Revision), // compared modulo 2^32 (RFC 1982)
		Refresh: seconds(time.Hour),
		Retry:   seconds(10 * time.Minute),
		Expire:  seconds(24 * time.Hour),
		Minttl:  ttl,
	}
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: ttl}
}

func address(name string, a netip.Addr) dns.RR {
	return &dns.A{Hdr: header(name, dns.TypeA), A: a.AsSlice()}
}

// suffix is the zone's apex in the case in which name was asked.
func suffix(name, apex string) string {
	if i := len(name) - len(apex); i >= 0 && strings.EqualFold(name[i:], apex) {
		return name[i:]
	}
	return apex // the name has escapes in it
}
