package dns

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"podd/directory"
)

const reverseRoot = ".in-addr.arpa."

// reverseApex is the reverse zone of ours that the name is in, "" when it is in
// none. A prefix whose length is no multiple of eight is several zones, one for
// each value of its last whole or partial octet (RFC 1035, section 3.5): a /20
// is sixteen of /24, and the addresses of a /29 are a zone each.
func reverseApex(c *directory.Cluster, name string) string {
	octets := reverseOctets(name)
	for _, p := range []netip.Prefix{c.Public, c.Virtual} {
		depth := (p.Bits() + 7) / 8
		if len(octets) < depth {
			continue
		}
		var a [4]byte
		ok := true
		for i, o := range octets[:depth] {
			n, err := strconv.ParseUint(o, 10, 8)
			a[i], ok = byte(n), ok && err == nil && strconv.FormatUint(n, 10) == o
		}
		if !ok || !p.Contains(netip.AddrFrom4(a)) {
			continue
		}
		apex := make([]string, depth)
		for i, o := range octets[:depth] {
			apex[depth-1-i] = o
		}
		return strings.Join(apex, ".") + reverseRoot
	}
	return ""
}

// reverseOctets are the labels below in-addr.arpa, as in the address: the one
// nearest to the root first.
func reverseOctets(name string) []string {
	rest, ok := strings.CutSuffix(name, reverseRoot)
	if !ok {
		return nil
	}
	labels := strings.Split(rest, ".")
	for i, j := 0, len(labels)-1; i < j; i, j = i+1, j-1 {
		labels[i], labels[j] = labels[j], labels[i]
	}
	return labels
}

// reverseZone looks up a canonical name that is in a reverse zone of ours.
// Records are owned by asked, the same name as it was asked.
func reverseZone(view *directory.View, asked, name string) ([]dns.RR, bool) {
	octets := reverseOctets(name)
	if len(octets) < 4 {
		// An inner node of the tree. Saying that it exists is right if any
		// pod is below it and harmless if not; the reverse is not
		// (RFC 8020).
		return nil, true
	}
	var a netip.Addr
	if len(octets) == 4 {
		a, _ = netip.ParseAddr(strings.Join(octets, "."))
	}
	p := view.PodAt(a)
	if p == nil {
		return nil, false
	}
	return []dns.RR{&dns.PTR{
		Hdr: header(asked, dns.TypePTR),
		Ptr: p.Name() + "." + view.Cluster.Zone + ".",
	}}, true
}
