//go:build root

package vnet_test

import (
	"bytes"
	"io"
	"net"
	"testing"

	"podd/vnet"
	"podd/vnet/netns"
	"podd/vnet/vnettest"
)

// received returns how many packets a device of the namespace at path has received.
func received(t testing.TB, path, device string) uint64 {
	t.Helper()
	_, count := vnettest.Packets(t, path, device)
	return count
}

// TestBlock blocks a pod in the middle of a conversation in which both sides
// have something to say.
func TestBlock(t *testing.T) {
	topology := vnettest.New(t, 1)
	n := open(t, topology.Hosts[0], topology.Proxy)
	b := binding(7, "100.64.0.1", topology.Hosts[0])
	path := newPod(t, n, b, vnet.AttachOptions{})
	addPeer(t, topology.Proxy, b)

	// Early demultiplexing is what could get around the block.
	vnettest.Do(t, path, func() error {
		if value, err := netns.GetSysctl("net/ipv4/tcp_early_demux"); err != nil || value != "1" {
			t.Fatalf("tcp_early_demux is %q (%v), want 1", value, err)
		}
		return nil
	})

	listener := vnettest.Listen(t, path, ":80")
	client := vnettest.Dial(t, topology.Proxy.Path, "100.64.0.1:80")
	accepted, err := listener.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()

	// A few round trips, so that both sockets have cached their routes.
	for range 3 {
		say(t, client, accepted, "ping")
		say(t, accepted, client, "pong")
	}

	for range 2 {
		if err := n.Block(path); err != nil {
			t.Fatal(err)
		}
	}
	if blocked, err := n.Blocked(path); err != nil || !blocked {
		t.Errorf("Blocked: %v, %v", blocked, err)
	}
	fromPod, toPod := received(t, topology.Proxy.Path, "peer7"), received(t, path, vnet.NIC)
	segments := vnettest.TCPInfo(t, accepted).Segs_in

	message := bytes.Repeat([]byte("to the pod "), 1000)
	if _, err := client.Write(message); err != nil {
		t.Fatal(err)
	}
	if _, err := accepted.Write(message); err != nil {
		t.Fatal(err)
	}
	// The client has retransmitted: packets have arrived at the NIC and gone
	// no further. The pod has not, because TCP knows that what it has sent is
	// still in the host.
	vnettest.Eventually(t, "the client has retransmitted to the NIC", func() bool {
		return received(t, path, vnet.NIC) > toPod && vnettest.TCPInfo(t, client).Total_retrans >= 2
	})
	if vnettest.TCPInfo(t, accepted).Unacked == 0 {
		t.Error("the pod has nothing to send: the test proves nothing")
	}
	if got := vnettest.TCPInfo(t, accepted).Segs_in; got != segments {
		t.Errorf("%d segments have reached the pod's socket", got-segments)
	}
	if got := received(t, topology.Proxy.Path, "peer7"); got != fromPod {
		t.Errorf("%d packets have left the pod", got-fromPod)
	}
	for range 2 {
		if err := n.Unblock(path); err != nil {
			t.Fatal(err)
		}
	}
	if blocked, err := n.Blocked(path); err != nil || blocked {
		t.Errorf("Blocked after Unblock: %v, %v", blocked, err)
	}
	for _, c := range []net.Conn{accepted, client} {
		got := make([]byte, len(message))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, message) {
			t.Errorf("after the block: %v, equal %v", err, bytes.Equal(got, message))
		}
	}
}

// TestAttachBlocked checks that a NIC can be blocked from its first moment.
func TestAttachBlocked(t *testing.T) {
	topology := vnettest.New(t, 1)
	n := open(t, topology.Hosts[0], topology.Proxy)
	b := binding(7, "100.64.0.1", topology.Hosts[0])
	path := newPod(t, n, b, vnet.AttachOptions{Blocked: true})
	addPeer(t, topology.Proxy, b)
	listener := vnettest.Listen(t, path, ":80")

	connected := make(chan error, 1)
	go func() {
		c, err := vnettest.TryDial(topology.Proxy.Path, "100.64.0.1:80", vnettest.Timeout)
		if err == nil {
			c.Close()
		}
		connected <- err
	}()
	vnettest.Eventually(t, "the connection request has arrived", func() bool { return received(t, path, vnet.NIC) > 0 })
	if sent := received(t, topology.Proxy.Path, "peer7"); sent != 0 {
		t.Errorf("%d packets have left the pod", sent)
	}
	select {
	case err := <-connected:
		t.Fatalf("a client connected to a blocked pod: %v", err)
	default:
	}
	if err := n.Unblock(path); err != nil {
		t.Fatal(err)
	}
	if err := <-connected; err != nil {
		t.Error(err)
	}
	listener.Close()
}

// say sends message from one end of a connection to the other.
func say(t testing.TB, from, to net.Conn, message string) {
	t.Helper()
	if _, err := io.WriteString(from, message); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(message))
	if _, err := io.ReadFull(to, got); err != nil || string(got) != message {
		t.Fatalf("got %q (%v), want %q", got, err, message)
	}
}

func BenchmarkBlock(b *testing.B) {
	topology := vnettest.New(b, 1)
	n := open(b, topology.Hosts[0], topology.Proxy)
	path := newPod(b, n, binding(7, "100.64.0.1", topology.Hosts[0]), vnet.AttachOptions{})
	for b.Loop() {
		if err := n.Block(path); err != nil {
			b.Fatal(err)
		}
		if err := n.Unblock(path); err != nil {
			b.Fatal(err)
		}
	}
}
