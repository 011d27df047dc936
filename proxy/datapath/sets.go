package datapath

import (
	"errors"
	"fmt"
	"net/netip"

	"podd/pod"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The sets of addresses that rules refer to, so that there is one rule however
// many there are.
const (
	// hostSet holds the hosts' physical addresses.
	hostSet = "podproxy-hosts"
	// serviceSet holds what pods may reach at the proxy: address, protocol, port.
	serviceSet = "podproxy-services"
)

// services are DNS and ping at the gateway's address. For ICMP the port is the
// message's type and code.
var services = []struct {
	protocol uint8
	port     uint16
}{
	{unix.IPPROTO_UDP, 53},
	{unix.IPPROTO_TCP, 53},
	{unix.IPPROTO_ICMP, 8 << 8},
}

// ensureSets makes the sets and returns the hosts that are in.
func (k *kernel) ensureSets() (map[netip.Addr]bool, error) {
	for name, kind := range map[string]string{hostSet: "hash:ip", serviceSet: "hash:ip,port"} {
		err := k.conn.IpsetCreate(name, kind, netlink.IpsetCreateOptions{Replace: true})
		if err != nil {
			return nil, fmt.Errorf("creating set %s: %w", name, err)
		}
	}
	for _, s := range services {
		entry := &netlink.IPSetEntry{IP: pod.Gateway.AsSlice(), Protocol: &s.protocol, Port: &s.port, Replace: true}
		if err := k.conn.IpsetAdd(serviceSet, entry); err != nil {
			return nil, fmt.Errorf("adding service to set %s: %w", serviceSet, err)
		}
	}
	set, err := k.conn.IpsetList(hostSet)
	if err != nil {
		return nil, fmt.Errorf("listing set %s: %w", hostSet, err)
	}
	hosts := map[netip.Addr]bool{}
	for _, e := range set.Entries {
		if host, ok := netip.AddrFromSlice(e.IP); ok {
			hosts[host.Unmap()] = true
		}
	}
	return hosts, nil
}

// setHosts makes the set of hosts equal to wanted.
func (d *Datapath) setHosts(wanted []netip.Addr) error {
	keep := make(map[netip.Addr]bool, len(wanted))
	var failures []error
	for _, host := range wanted {
		host = host.Unmap()
		if !host.Is4() {
			failures = append(failures, fmt.Errorf("adding host: %w: %s is not an IPv4 address", pod.ErrInvalid, host))
			continue
		}
		keep[host] = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for host := range keep {
		if !d.hosts[host] {
			if err := d.kernel.addHost(host); err != nil {
				failures = append(failures, err)
				continue
			}
			d.hosts[host] = true
		}
	}
	for host := range d.hosts {
		if !keep[host] {
			if err := d.kernel.removeHost(host); err != nil {
				failures = append(failures, err)
				continue
			}
			delete(d.hosts, host)
		}
	}
	return errors.Join(failures...)
}

func (k *kernel) addHost(host netip.Addr) error {
	k.changed("set", "host %s was missing in %s", host, hostSet)
	if err := k.conn.IpsetAdd(hostSet, &netlink.IPSetEntry{IP: host.AsSlice(), Replace: true}); err != nil {
		return fmt.Errorf("adding host %s to set %s: %w", host, hostSet, err)
	}
	return nil
}

func (k *kernel) removeHost(host netip.Addr) error {
	k.changed("set", "host %s was added to %s", host, hostSet)
	err := k.conn.IpsetDel(hostSet, &netlink.IPSetEntry{IP: host.AsSlice(), Replace: true})
	if err != nil {
		return fmt.Errorf("removing host %s from set %s: %w", host, hostSet, err)
	}
	return nil
}

// removeSets deletes the sets, which no rule may use any more.
func (k *kernel) removeSets() error {
	var failures []error
	for _, name := range []string{hostSet, serviceSet} {
		err := k.conn.IpsetDestroy(name)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, nl.IPSetError(nl.IPSET_ERR_EXIST)) {
			failures = append(failures, fmt.Errorf("deleting set %s: %w", name, err))
		}
	}
	return errors.Join(failures...)
}
