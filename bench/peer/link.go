package peer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"podd/lab"
	"podd/vnet/netns"
)

// gateway is a container's next hop: its host's end of the link, which has the
// same address everywhere.
var gateway = netip.MustParseAddr("169.254.1.1")

// Link is an address with a network namespace on each of two hosts, where the
// container that has it may be.
type Link struct {
	Address netip.Addr
	lab     *lab.Lab
	name    string
	hosts   [2]string
}

// NewLink makes the namespaces and routes the address to the first host. name
// is short and of one link only, and so is number, from 1 to 250. On failure
// nothing is left.
func NewLink(l *lab.Lab, name string, number int, hosts [2]string) (*Link, error) {
	k := &Link{Address: netip.AddrFrom4([4]byte{100, 127, 0, byte(number)}), lab: l, name: name, hosts: hosts}
	err := k.make()
	if err != nil {
		err = fmt.Errorf("linking %s: %w", name, err)
		return nil, errors.Join(err, k.Close())
	}
	return k, nil
}

// Namespace is the file of the network namespace on one of the hosts. Its name
// begins as those of a lab's own do: taking the lab down removes it, too.
func (k *Link) Namespace(side int) string {
	return k.lab.Namespace(fmt.Sprintf("bench-%s-%s", k.name, k.hosts[side]))
}

func (k *Link) device() string { return "b" + k.name }

func (k *Link) make() error {
	for side := range k.hosts {
		if err := k.makeSide(side); err != nil {
			return fmt.Errorf("host %s: %w", k.hosts[side], err)
		}
	}
	return k.Route(0)
}

func (k *Link) makeSide(side int) error {
	if err := netns.Create(k.Namespace(side), func() error { return nil }); err != nil {
		return err
	}
	ns, err := netns.Open(k.Namespace(side))
	if err != nil {
		return err
	}
	defer ns.Close()
	err = k.lab.Do(k.hosts[side], func() error {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: k.device()}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(ns.Fd()))}
		if err := netlink.LinkAdd(veth); err != nil {
			return fmt.Errorf("adding veth: %w", err)
		}
		if err := up(k.device(), gateway); err != nil {
			return err
		}
		device, err := netlink.LinkByName(k.device())
		if err != nil {
			return err
		}
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: device.Attrs().Index, Dst: single(k.Address), Scope: netlink.SCOPE_LINK}); err != nil {
			return fmt.Errorf("adding route: %w", err)
		}
		return netns.SetSysctls(netns.Sysctl{Name: "net/ipv4/ip_forward", Value: "1"})
	})
	if err != nil {
		return err
	}
	return netns.DoIn(ns, func() error {
		if err := up("lo", netip.Addr{}); err != nil {
			return err
		}
		if err := up("eth0", k.Address); err != nil {
			return err
		}
		device, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		for _, r := range []*netlink.Route{
			{LinkIndex: device.Attrs().Index, Dst: single(gateway), Scope: netlink.SCOPE_LINK},
			{LinkIndex: device.Attrs().Index, Gw: gateway.AsSlice()},
		} {
			if err := netlink.RouteReplace(r); err != nil {
				return fmt.Errorf("adding route: %w", err)
			}
		}
		return nil
	})
}

// Route has the router send what is for the address to one of the hosts.
func (k *Link) Route(side int) error {
	err := k.lab.Do(lab.Router, func() error {
		return netlink.RouteReplace(&netlink.Route{Dst: single(k.Address), Gw: k.lab.Address(k.hosts[side]).AsSlice()})
	})
	if err != nil {
		return fmt.Errorf("routing %s to host %s: %w", k.Address, k.hosts[side], err)
	}
	return nil
}

// Close removes the namespaces and routes, also of a link that is half made.
func (k *Link) Close() error {
	err := k.lab.Do(lab.Router, func() error { return netlink.RouteDel(&netlink.Route{Dst: single(k.Address)}) })
	if errors.Is(err, unix.ESRCH) {
		err = nil
	}
	errs := []error{err}
	for side, host := range k.hosts {
		err := k.lab.Do(host, func() error {
			device, err := netlink.LinkByName(k.device())
			var none netlink.LinkNotFoundError
			if errors.As(err, &none) {
				return nil
			}
			if err != nil {
				return err
			}
			return netlink.LinkDel(device)
		})
		errs = append(errs, err)
		if err := netns.Delete(k.Namespace(side)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing the link of %s: %w", k.name, err)
	}
	return nil
}

// up brings a device of the thread's namespace up, with an address if it is
// valid.
func up(name string, address netip.Addr) error {
	device, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("looking for %s: %w", name, err)
	}
	if address.IsValid() {
		if err := netlink.AddrReplace(device, &netlink.Addr{IPNet: single(address)}); err != nil {
			return fmt.Errorf("adding address %s to %s: %w", address, name, err)
		}
	}
	if err := netlink.LinkSetUp(device); err != nil {
		return fmt.Errorf("bringing up %s: %w", name, err)
	}
	return nil
}

func single(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
