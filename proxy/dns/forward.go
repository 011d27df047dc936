package dns

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// upstreamTimeout is how long one upstream is waited for; a resolver in
	// a pod waits for five seconds in all.
	upstreamTimeout = 2 * time.Second
	forwardTimeout  = 4 * time.Second
	// maxForwarding bounds the queries that wait for an upstream.
	maxForwarding = 256
)

// semaphore counts forwarded queries; its zero value is ready.
type semaphore struct {
	mu sync.Mutex
	n  int
}

func (s *semaphore) acquire(limit int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n >= limit {
		return false
	}
	s.n++
	return true
}

func (s *semaphore) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n--
}

// forward asks the upstreams in turn and fills in the first answer, SERVFAIL if
// there is none.
func (h *Handler) forward(ctx context.Context, reply, query *dns.Msg, tcp bool) {
	reply.Rcode = dns.RcodeServerFailure
	if len(h.Upstreams) == 0 || !h.forwarding.acquire(maxForwarding) {
		return
	}
	defer h.forwarding.release()
	reply.RecursionAvailable = true
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()

	// A question of our own, with an ID of our own (RFC 5452), so that
	// nothing but the question passes through.
	ask := new(dns.Msg).SetQuestion(query.Question[0].Name, query.Question[0].Qtype)
	ask.RecursionDesired, ask.CheckingDisabled = query.RecursionDesired, query.CheckingDisabled
	opt := query.IsEdns0()
	ask.SetEdns0(udpSize, opt != nil && opt.Do())
	for _, upstream := range h.Upstreams {
		answer := exchange(ctx, ask, upstream, tcp)
		if answer == nil {
			continue
		}
		reply.Rcode = answer.Rcode
		reply.Truncated = answer.Truncated
		reply.Answer, reply.Ns = answer.Answer, answer.Ns
		for _, rr := range answer.Extra {
			if rr.Header().Rrtype != dns.TypeOPT {
				reply.Extra = append(reply.Extra, rr)
			}
		}
		return
	}
}

// exchange asks one upstream; nil when it gives no usable answer.
func exchange(ctx context.Context, ask *dns.Msg, upstream netip.AddrPort, tcp bool) *dns.Msg {
	client := &dns.Client{Net: "udp", Timeout: upstreamTimeout, UDPSize: udpSize}
	if tcp {
		client.Net = "tcp"
	}
	answer, _, err := client.ExchangeContext(ctx, ask, upstream.String())
	if err != nil || answer.Rcode == dns.RcodeServerFailure || answer.Rcode == dns.RcodeRefused {
		return nil
	}
	if len(answer.Question) != 1 || answer.Question[0] != ask.Question[0] {
		return nil
	}
	return answer
}
