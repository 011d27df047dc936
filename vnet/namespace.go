package vnet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"podd/vnet/netns"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// podSysctls are set in every pod's namespace.
var podSysctls = []netns.Sysctl{
	// Go's listeners use MPTCP wherever they can, and CRIU can't dump that.
	{Name: "net/mptcp/enabled", Value: "0", Optional: true},
	// No address, router solicitation or neighbour discovery on the NIC; ::1
	// stays, because programs listen on it.
	{Name: "net/ipv6/conf/default/disable_ipv6", Value: "1", Optional: true},
	// As podman: no capability is needed for low ports and, for the group
	// root, for ping.
	{Name: "net/ipv4/ip_unprivileged_port_start", Value: "0"},
	{Name: "net/ipv4/ping_group_range", Value: "0 0"},
}

// A pod's table of TCP connections has tcpTableSize buckets of 8 bytes. By default all
// namespaces share the machine's, of hundreds of thousands, and CRIU has the kernel
// go through all of it, twice, for the sockets of a frozen pod. The parameter is of the
// namespace that others are made from (Linux 6.1); a value that somebody chose stays.
const (
	tcpTableParameter = "net/ipv4/tcp_child_ehash_entries"
	tcpTableSize      = 8192
)

func giveOwnTCPTable() error {
	now, err := netns.GetSysctl(tcpTableParameter)
	if err != nil || now != "0" {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return netns.SetSysctls(netns.Sysctl{Name: tcpTableParameter, Value: fmt.Sprint(tcpTableSize)})
}

// CreateNamespace makes a pod's network namespace and keeps it at path, with
// the loopback device up. It does nothing when the namespace exists.
func (n *Network) CreateNamespace(path string) error {
	if err := giveOwnTCPTable(); err != nil {
		return fmt.Errorf("creating network namespace %s: %w", path, err)
	}
	return netns.Create(path, func() error {
		c, err := netns.Dial("", unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		defer c.Close()
		if err := makeRoomForBlock(c); err != nil {
			return err
		}
		if err := prepareLoopback(c); err != nil {
			return err
		}
		lo, err := c.LinkByName("lo")
		if err != nil {
			return fmt.Errorf("looking for the loopback device: %w", err)
		}
		if err := c.LinkSetUp(lo); err != nil {
			return fmt.Errorf("bringing up the loopback device: %w", err)
		}
		return netns.SetSysctls(podSysctls...)
	})
}

// DeleteNamespace removes the NIC and then the namespace at path. It does
// nothing when there is none. The NIC goes first and explicitly: sockets that
// linger can keep a namespace, and all that is in it, alive for many seconds.
func (n *Network) DeleteNamespace(path string) error {
	if err := n.Detach(path); err != nil {
		return err
	}
	return netns.Delete(path)
}

// List returns the paths of all namespaces under a directory, also of those
// whose creation was interrupted.
func (n *Network) List(directory string) ([]string, error) {
	entries, err := os.ReadDir(directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing network namespaces: %w", err)
	}
	var paths []string
	for _, e := range entries {
		if !e.IsDir() {
			paths = append(paths, filepath.Join(directory, e.Name()))
		}
	}
	return paths, nil
}

// Reconcile deletes every namespace under a directory, NIC and all, whose path
// is not wanted. One that can't be deleted does not keep it from the others.
func (n *Network) Reconcile(directory string, wanted map[string]bool) error {
	paths, err := n.List(directory)
	if err != nil {
		return err
	}
	var failures []error
	for _, path := range paths {
		if wanted[path] {
			continue
		}
		n.log.Info("removing an abandoned network namespace", "path", path)
		failures = append(failures, n.DeleteNamespace(path))
	}
	return errors.Join(failures...)
}

// CountConnections returns how many established TCP connections a pod has with
// others. Those among its own processes are not counted.
func (n *Network) CountConnections(path string) (int, error) {
	c, err := netns.Dial(path, unix.NETLINK_INET_DIAG)
	if err != nil {
		return 0, fmt.Errorf("counting connections: %w", err)
	}
	defer c.Close()
	count := 0
	// An IPv6 socket that carries IPv4 is listed as IPv6 only.
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		sockets, err := c.SocketDiagTCP(family)
		if err != nil {
			return 0, fmt.Errorf("counting connections in %s: %w", path, err)
		}
		for _, s := range sockets {
			if s.State == netlink.TCP_ESTABLISHED && !s.ID.Destination.IsLoopback() && !s.ID.Destination.Equal(s.ID.Source) {
				count++
			}
		}
	}
	return count, nil
}
