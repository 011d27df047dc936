package datapath

import (
	"strconv"

	"podd/vnet/firewall"
)

// ruleOwner marks the proxy's rules.
const ruleOwner firewall.Owner = "podproxy"

// rules are all there are, however many pods.
func rules(c Config) []firewall.Chain {
	outer := "-p udp --dport " + strconv.Itoa(int(c.Port))
	inner := "-i " + devicePrefix + "+"
	public, virtual := c.PublicPrefix.String(), c.VirtualPrefix.String()
	chains := []firewall.Chain{
		{Table: "raw", Name: "PREROUTING", Rules: []string{
			// Labelled packets come from hosts only: the label is no secret.
			outer + " -m set ! --match-set " + hostSet + " src -j DROP",
			// The outer packets of a connection need no entry of their own.
			outer + " -j CT --notrack",
			// A source address comes with its own label only. The devices'
			// rp_filter says so too, but a sysctl daemon may loosen that when
			// a device appears, as systemd's does.
			inner + " -m rpfilter --invert -j DROP",
		}},
		{Table: "raw", Name: "OUTPUT", Rules: []string{
			outer + " -j CT --notrack",
		}},
		{Table: "nat", Name: "PREROUTING", Rules: []string{
			"-d " + public + " -j NETMAP --to " + virtual,
		}},
		{Table: "nat", Name: "POSTROUTING", Rules: []string{
			"-s " + virtual + " ! -d " + virtual + " -j NETMAP --to " + public,
			// From pod to pod by public address: the answer has to come back here.
			"-s " + virtual + " -m conntrack --ctstate DNAT -j NETMAP --to " + public,
		}},
	}
	forward, input := firewall.Chain{Table: "filter", Name: "FORWARD"}, firewall.Chain{Table: "filter", Name: "INPUT"}
	if !c.AllowUnderlay {
		forward.Rules = []string{inner + " -m set --match-set " + hostSet + " dst -j DROP"}
		input.Rules = []string{inner + " -m conntrack ! --ctstate RELATED,ESTABLISHED -m set ! --match-set " + serviceSet + " dst,dst -j DROP"}
	}
	return append(chains, forward, input)
}
