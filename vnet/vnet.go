// Package vnet is the virtual-to-physical name layer on a host: it gives a pod
// a network namespace with one virtual NIC whose address never changes. The
// NIC is a VXLAN device with the pod's label as its network identifier, so
// every packet says which incarnation of which pod it belongs to.
//
// The device is created by the host and appears in the pod's namespace; its
// UDP socket stays with the host, so no packet is forwarded or translated on
// the way. All of a pod's traffic goes to the proxy.
//
// Nothing is kept in memory: namespaces are files, everything else is kernel
// state, so podd may be killed and restarted at any time.
package vnet

import (
	"fmt"
	"log/slog"
	"net/netip"

	"podd/pod"
	"podd/vnet/firewall"
	"podd/vnet/netns"
	"podd/vnet/vxlan"
)

// NIC is the name of the virtual NIC inside the pod.
const NIC = "eth0"

// Config says where this host is and where its pods' packets go.
type Config struct {
	// Physical is the host's own outer address, Proxy the proxy's; both IPv4.
	Physical, Proxy netip.Addr
	// Port is the UDP port of VXLAN; 0 means vxlan.DefaultPort.
	Port uint16
}

// Network makes, blocks and removes the virtual NICs of one host. It is safe
// for concurrent use on different pods; calls for one pod must not overlap.
type Network struct {
	config Config
	log    *slog.Logger
	// host is the connection to the namespace the host's UDP sockets are in.
	host *netns.Conn
}

// New connects to the calling thread's network namespace, which is the host's.
// The error wraps pod.ErrInvalid when an address is missing or not IPv4.
func New(config Config, log *slog.Logger) (*Network, error) {
	if config.Port == 0 {
		config.Port = vxlan.DefaultPort
	}
	config.Physical, config.Proxy = config.Physical.Unmap(), config.Proxy.Unmap()
	if !config.Physical.Is4() || !config.Proxy.Is4() {
		return nil, fmt.Errorf("setting up virtual NICs: %w: host %s and proxy %s must have IPv4 addresses", pod.ErrInvalid, config.Physical, config.Proxy)
	}
	host, err := netns.Dial("")
	if err != nil {
		return nil, fmt.Errorf("setting up virtual NICs: %w", err)
	}
	return &Network{config: config, log: log, host: host}, nil
}

// Close releases the connection. Pods keep their NICs.
func (n *Network) Close() error { return n.host.Close() }

// EnsureAnchor brings up the host's anchor device: as long as it is there, a
// packet for a pod that has left is dropped without an ICMP error.
func (n *Network) EnsureAnchor() error {
	return vxlan.EnsureAnchor(n.host, n.config.Physical, n.config.Port)
}

// firewallOwner marks the host's rule.
const firewallOwner firewall.Owner = "podd"

// firewall is the one rule of a host: labelled packets come from the proxy
// only. The label is no secret, and the kernel does not compare the outer
// source address with the device's remote one, nor the destination with its
// local one; so the rule is about all addresses of the host, and only those: a
// host may also be a router for others.
func (n *Network) firewall() []firewall.Chain {
	return []firewall.Chain{{Table: "raw", Name: "PREROUTING", Rules: []string{
		fmt.Sprintf("-p udp --dport %d -m addrtype --dst-type LOCAL ! -s %s/32 -j DROP", n.config.Port, n.config.Proxy),
	}}}
}

// EnsureFirewall keeps labelled packets that don't come from the proxy away
// from the pods. It runs iptables, on the calling thread's network namespace.
func (n *Network) EnsureFirewall() error {
	if _, err := firewallOwner.Ensure(n.firewall()); err != nil {
		return fmt.Errorf("protecting pods from forged packets: %w", err)
	}
	return nil
}

// Repair puts back what somebody has taken away of the host's own parts, the
// anchor device and the firewall's rule, and says which of them.
func (n *Network) Repair() (repaired []string, err error) {
	there, err := vxlan.HasAnchor(n.host, n.config.Physical, n.config.Port)
	if err != nil {
		return nil, err
	}
	if !there {
		if err := n.EnsureAnchor(); err != nil {
			return nil, err
		}
		repaired = append(repaired, "the anchor device "+vxlan.AnchorName)
	}
	changed, err := firewallOwner.Ensure(n.firewall())
	if err != nil {
		return repaired, fmt.Errorf("protecting pods from forged packets: %w", err)
	}
	if changed > 0 {
		repaired = append(repaired, "the rule against forged packets")
	}
	return repaired, nil
}

// RemoveFirewall undoes EnsureFirewall.
func (n *Network) RemoveFirewall() error { return firewallOwner.Remove(n.firewall()) }

// RemoveAnchor undoes EnsureAnchor, for a host that leaves for good.
func (n *Network) RemoveAnchor() error { return vxlan.RemoveAnchor(n.host) }
