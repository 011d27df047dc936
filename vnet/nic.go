package vnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net"

	"podd/pod"
	"podd/vnet/netns"
	"podd/vnet/vxlan"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// newNIC is the name of a NIC until it is in the pod's namespace. Before Linux
// 6.15 the kernel looks the name of a new device up in the namespace of whoever
// asks for it, which is the host's, and the host's own NIC may well be called
// as the pod's.
const newNIC = "podd-new"

// AttachOptions are the choices Attach leaves to its caller.
type AttachOptions struct {
	// Blocked attaches the NIC with the network blocked from the first
	// moment, for a pod that is about to be restored.
	Blocked bool
}

// Attach gives the pod whose namespace is at path its virtual NIC, up, with
// the address and label of binding. It is idempotent for the same binding; it
// wraps pod.ErrExists when there is another NIC or the label is in use on this
// host. A failed Attach leaves no NIC.
func (n *Network) Attach(path string, binding pod.Binding, options AttachOptions) error {
	if !binding.Virtual.Is4() || binding.Label < pod.MinLabel || binding.Label > pod.MaxLabel {
		return fmt.Errorf("attaching NIC: %w: address %s, label %s", pod.ErrInvalid, binding.Virtual, binding.Label)
	}
	created, err := n.attach(path, binding, options)
	if err == nil {
		return nil
	}
	err = fmt.Errorf("attaching NIC to %s: %w", path, err)
	if created {
		err = errors.Join(err, n.Detach(path))
	}
	return err
}

// attach reports whether it has created the device, which has to go if the
// rest fails.
func (n *Network) attach(path string, binding pod.Binding, options AttachOptions) (created bool, err error) {
	ns, err := netns.Open(path)
	if err != nil {
		return false, err
	}
	defer ns.Close()
	c, err := netns.Dial(path, unix.NETLINK_NETFILTER)
	if err != nil {
		return false, err
	}
	defer c.Close()

	if options.Blocked {
		if err := blockIngress(c); err != nil {
			return false, err
		}
	}
	device := vxlan.Device{
		Name: newNIC, Label: binding.Label, MAC: vxlan.PodMAC,
		Local: n.config.Physical, Remote: n.config.Proxy, Port: n.config.Port,
		Namespace: int(ns.Fd()),
	}
	nic, err := c.LinkByName(NIC)
	if netns.IsNotFound(err) {
		err = vxlan.Create(n.host, device)
		created = err == nil
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return false, err
		}
		nic, err = c.LinkByName(newNIC)
		if !created && netns.IsNotFound(err) {
			return false, fmt.Errorf("%w: label %s is in use on this host", pod.ErrExists, binding.Label)
		}
	}
	if err != nil {
		return created, fmt.Errorf("looking for the NIC: %w", err)
	}
	if !device.Matches(nic) {
		return created, fmt.Errorf("%w: there is a NIC other than label %s", pod.ErrExists, binding.Label)
	}
	return created, configure(c, nic, binding, options)
}

// configure gives the NIC its name and brings it up with its address,
// neighbour and routes.
func configure(c *netns.Conn, nic netlink.Link, binding pod.Binding, options AttachOptions) error {
	index := nic.Attrs().Index
	if nic.Attrs().Name != NIC {
		if err := c.LinkSetName(nic, NIC); err != nil {
			return fmt.Errorf("naming the NIC %s: %w", NIC, err)
		}
	}
	if nic.Attrs().Flags&net.FlagUp == 0 {
		if err := c.LinkSetUp(nic); err != nil {
			return fmt.Errorf("bringing up %s: %w", NIC, err)
		}
	}
	if err := vxlan.SetQueueBytes(c, index, vxlan.HoldQueueBytes); err != nil {
		return err
	}
	var err error
	if options.Blocked {
		err = vxlan.Hold(c, index, pod.Gateway)
	} else {
		err = vxlan.SetNeighbor(c, index, pod.Gateway, vxlan.ProxyMAC)
	}
	if err != nil {
		return err
	}
	address := &netlink.Addr{IPNet: netlink.NewIPNet(binding.Virtual.AsSlice())}
	if err := c.AddrReplace(nic, address); err != nil {
		return fmt.Errorf("adding address %s: %w", binding.Virtual, err)
	}
	gateway := &netlink.Route{LinkIndex: index, Scope: netlink.SCOPE_LINK, Dst: netlink.NewIPNet(pod.Gateway.AsSlice())}
	if err := c.RouteReplace(gateway); err != nil {
		return fmt.Errorf("adding route to the gateway %s: %w", pod.Gateway, err)
	}
	defaultRoute := &netlink.Route{LinkIndex: index, Gw: pod.Gateway.AsSlice()}
	if err := c.RouteReplace(defaultRoute); err != nil {
		return fmt.Errorf("adding default route via %s: %w", pod.Gateway, err)
	}
	return nil
}

// Detach removes the NIC of the pod whose namespace is at path, also a half-made
// one, with all that is queued in it. It does nothing when there is no NIC or no
// namespace. It takes 15-35 ms, most of it the kernel's grace periods.
func (n *Network) Detach(path string) error {
	c, err := netns.Dial(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, netns.ErrNotNamespace) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("detaching NIC: %w", err)
	}
	defer c.Close()
	for _, name := range []string{NIC, newNIC} {
		nic, err := c.LinkByName(name)
		if err == nil {
			err = c.LinkDel(nic)
		}
		if err != nil && !netns.IsNotFound(err) {
			return fmt.Errorf("detaching NIC from %s: %w", path, err)
		}
	}
	return nil
}
