//go:build root

package vnet_test

import (
	"testing"

	"podd/vnet"
	"podd/vnet/vnettest"
)

func TestCountUnaccepted(t *testing.T) {
	topology := vnettest.New(t, 1)
	n := open(t, topology.Hosts[0], topology.Proxy)
	b := binding(7, "100.64.0.1", topology.Hosts[0])
	path := newPod(t, n, b, vnet.AttachOptions{})
	addPeer(t, topology.Proxy, b)
	want := func(want int) {
		t.Helper()
		if got, err := n.CountUnaccepted(path); err != nil || got != want {
			t.Errorf("%d connections wait (%v), want %d", got, err, want)
		}
	}
	want(0)
	listener := vnettest.Listen(t, path, ":80")
	for range 3 {
		vnettest.Dial(t, topology.Proxy.Path, "100.64.0.1:80")
	}
	// The last segment of a handshake is on its way when the client is done.
	vnettest.Eventually(t, "three connections wait", func() bool {
		got, err := n.CountUnaccepted(path)
		return err == nil && got == 3
	})
	for left := 2; left >= 0; left-- {
		accepted, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer accepted.Close()
		want(left)
	}
}
