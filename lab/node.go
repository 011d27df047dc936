package lab

import (
	"fmt"
	"net/netip"
	"path/filepath"

	"podd/pod"
)

// The nodes that every lab has, besides its hosts "a", "b", ...
const (
	Router = "router"
	Proxy  = "proxy"
	Client = "client"
)

// HostNames returns the names of the hosts, in order.
func (l *Lab) HostNames() []string {
	var names []string
	for i := range l.Hosts {
		names = append(names, string(rune('a'+i)))
	}
	return names
}

// Nodes returns the names of all nodes: router, proxy, client, hosts.
func (l *Lab) Nodes() []string {
	return append([]string{Router, Proxy, Client}, l.HostNames()...)
}

// Daemons returns the names of the nodes that run a daemon: proxy, hosts.
func (l *Lab) Daemons() []string { return append([]string{Proxy}, l.HostNames()...) }

// Address is a node's address; the router, which has one on every link, has
// the zero Addr.
func (l *Lab) Address(node string) netip.Addr {
	switch {
	case node == Proxy:
		return netip.MustParseAddr("10.10.0.2")
	case node == Client:
		return netip.MustParseAddr("192.0.2.10")
	case l.isHost(node):
		return netip.AddrFrom4([4]byte{10, 10, node[0] - 'a' + 1, 2})
	}
	return netip.Addr{}
}

// subnetBits is the length of every link's prefix.
const subnetBits = 24

// gateway is the router's address on the link of a node with this address.
func gateway(address netip.Addr) netip.Addr {
	return netip.PrefixFrom(address, subnetBits).Masked().Addr().Next()
}

func (l *Lab) isHost(node string) bool {
	return len(node) == 1 && node[0] >= 'a' && int(node[0]-'a') < l.Hosts
}

func (l *Lab) checkNode(node string) error {
	switch {
	case node == Router, node == Proxy, node == Client, l.isHost(node):
		return nil
	}
	return fmt.Errorf("%w: the lab has no node %q; it has %v", pod.ErrNotFound, node, l.Nodes())
}

func (l *Lab) checkDaemon(node string) error {
	if err := l.checkNode(node); err != nil {
		return err
	}
	if node == Router || node == Client {
		return fmt.Errorf("%w: no daemon runs on node %q", pod.ErrInvalid, node)
	}
	return nil
}

// Namespace is the file of a node's network namespace, where ip-netns(8)
// looks for it.
func (l *Lab) Namespace(node string) string { return filepath.Join(netnsDir, place.prefix+node) }

// StateDir, RunDir and CgroupParent are what a node's daemon is told; a cgroup
// of this name is in every hierarchy's root.
func (l *Lab) StateDir(node string) string     { return filepath.Join(l.Dir, node) }
func (l *Lab) RunDir(node string) string       { return filepath.Join(place.run, node) }
func (l *Lab) CgroupParent(node string) string { return place.prefix + node }

// Socket is the unix socket of a node's daemon, which podctl can talk to.
func (l *Lab) Socket(node string) string {
	if node == Proxy {
		return filepath.Join(l.RunDir(node), "podproxy.sock")
	}
	return filepath.Join(l.RunDir(node), "podd.sock")
}

// API is the address and port of a daemon's API, in the lab's network.
func (l *Lab) API(node string) netip.AddrPort {
	port := uint16(7443)
	if node == Proxy {
		port = 7444
	}
	return netip.AddrPortFrom(l.Address(node), port)
}

// LogPath is the file a node's daemon logs to, over all its restarts.
func (l *Lab) LogPath(node string) string { return filepath.Join(l.logDir(), node+".log") }

func (l *Lab) logDir() string { return filepath.Join(l.Dir, "log") }
