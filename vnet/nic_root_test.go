//go:build root

package vnet_test

import (
	"net"
	"path/filepath"
	"testing"

	"podd/pod"
	"podd/vnet"
	"podd/vnet/netns"
	"podd/vnet/vnettest"
	"podd/vnet/vxlan"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// TestAttachOnHostWithSameName attaches a NIC on a host whose own is called the
// same. Older kernels compare the name that is asked for with those of the
// host, so the pod's namespace must see the device appear under another one.
func TestAttachOnHostWithSameName(t *testing.T) {
	topology := vnettest.New(t, 1)
	host := topology.Hosts[0]
	var own netlink.Link
	host.Do(t, func() (err error) {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: vnet.NIC}, PeerName: "cable"}); err != nil {
			return err
		}
		own, err = netlink.LinkByName(vnet.NIC)
		return err
	})
	n := open(t, host, topology.Proxy)
	b := binding(7, "100.64.0.1", host)
	path := newNamespace(t, n)
	var events *nl.NetlinkSocket
	vnettest.Do(t, path, func() (err error) {
		events, err = nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK)
		return err
	})
	defer events.Close()
	if err := n.Attach(path, b, vnet.AttachOptions{}); err != nil {
		t.Fatal(err)
	}

	// The first message about the device is the kernel's answer to the request.
	if err := events.SetReceiveTimeout(&unix.Timeval{Sec: int64(vnettest.Timeout.Seconds())}); err != nil {
		t.Fatal(err)
	}
	messages, _, err := events.Receive()
	if err != nil {
		t.Fatal(err)
	}
	first, err := netlink.LinkDeserialize(nil, messages[0].Data)
	if err != nil {
		t.Fatal(err)
	}
	if name := first.Attrs().Name; name == vnet.NIC || first.Attrs().Flags&net.FlagUp != 0 {
		t.Errorf("the device appears as %s with flags %s, want another name, down", name, first.Attrs().Flags)
	}
	addPeer(t, topology.Proxy, b)
	expectNIC(t, topology, n, path, b)
	host.Do(t, func() error {
		link, err := netlink.LinkByName(vnet.NIC)
		if err == nil && link.Attrs().Index != own.Attrs().Index {
			t.Error("the host's own NIC is another one")
		}
		if _, err := netlink.LinkByName(vnet.NewNIC); !netns.IsNotFound(err) {
			t.Errorf("looking for %s on the host: %v", vnet.NewNIC, err)
		}
		return err
	})
}

// expectNIC talks through the NIC, which is all that the namespace has but lo.
func expectNIC(t *testing.T, topology *vnettest.Topology, n *vnet.Network, path string, b pod.Binding) {
	t.Helper()
	vnettest.Serve(t, path, ":80", "pod")
	vnettest.ExpectGreeting(t, vnettest.Dial(t, topology.Proxy.Path, b.Virtual.String()+":80"), "pod")
	vnettest.Do(t, path, func() error {
		links, err := netlink.LinkList()
		if len(links) != 2 || links[1].Attrs().Name != vnet.NIC {
			t.Errorf("the pod has devices %v, want lo and %s", links, vnet.NIC)
		}
		return err
	})
	if is, err := n.Blocked(path); err != nil || is {
		t.Errorf("Blocked: %v, %v", is, err)
	}
}

// TestInterruptedAttach finds what podd leaves when it is killed between two
// steps of Attach: attaching again completes it, and whatever removes a NIC
// removes it.
func TestInterruptedAttach(t *testing.T) {
	steps := []struct {
		name string
		take func(c *netns.Conn, nic netlink.Link) error
	}{
		{"created", func(*netns.Conn, netlink.Link) error { return nil }},
		{"named", func(c *netns.Conn, nic netlink.Link) error { return c.LinkSetName(nic, vnet.NIC) }},
		{"up", func(c *netns.Conn, nic netlink.Link) error { return c.LinkSetUp(nic) }},
	}
	topology := vnettest.New(t, 1)
	host := topology.Hosts[0]
	n := open(t, host, topology.Proxy)
	b := binding(7, "100.64.0.1", host)
	addPeer(t, topology.Proxy, b)
	ends := []struct {
		name string
		end  func(path string) error
	}{
		{"attach", func(path string) error { return n.Attach(path, b, vnet.AttachOptions{}) }},
		{"detach", n.Detach},
		{"reconcile", func(path string) error { return n.Reconcile(filepath.Dir(path), nil) }},
	}
	for done, step := range steps {
		for _, end := range ends {
			t.Run(step.name+" "+end.name, func(t *testing.T) {
				path := newNamespace(t, n)
				halfMake(t, host, path, vxlan.Device{
					Name: vnet.NewNIC, Label: b.Label, MAC: vxlan.PodMAC,
					Local: host.Address, Remote: topology.Proxy.Address, Port: vxlan.DefaultPort,
				})
				c, err := netns.Dial(path)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				nic, err := c.LinkByName(vnet.NewNIC)
				if err != nil {
					t.Fatal(err)
				}
				for _, s := range steps[:done+1] {
					if err := s.take(c, nic); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 {
					if err := end.end(path); err != nil {
						t.Fatal(err)
					}
				}
				// The label is in use exactly as long as the NIC is there.
				if end.name != "attach" {
					path = newNamespace(t, n)
				}
				if err := n.Attach(path, b, vnet.AttachOptions{}); err != nil {
					t.Fatal(err)
				}
				expectNIC(t, topology, n, path, b)
			})
		}
	}
}

// halfMake is the first step of Attach.
func halfMake(t *testing.T, host vnettest.Node, path string, device vxlan.Device) {
	t.Helper()
	ns, err := netns.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	device.Namespace = int(ns.Fd())
	host.Do(t, func() error {
		c, err := netns.Dial("")
		if err != nil {
			return err
		}
		defer c.Close()
		return vxlan.Create(c, device)
	})
}
