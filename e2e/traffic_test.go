//go:build e2e

package e2e

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"podd/e2e/workload"
	"podd/lab"
)

func TestUDP(t *testing.T) {
	server := newLoadgen(t, "", "serve-udp", "-listen", ":5000")
	client := workload.NewUDP(workload.UDPConfig{Address: server.public(5000), Dial: fromClient})
	load := startLoad(t, client)
	load.Lap()
	for _, host := range []string{"b", "c"} {
		// What was lost or waited during the freeze is the move's, what comes
		// after it has to be as before, on a machine that is slow for moments.
		load.requireSilence(server.move(host), 5*time.Second)
	}
	load.finish()
	t.Logf("%+v", client.Result())
}

// A Go program's default listener is one for multipath TCP, where the kernel
// has that; in a pod it has not.
func TestGoServer(t *testing.T) {
	server := newLoadgen(t, "", "serve-tcp", "-listen", ":5000")
	client := workload.NewTCP(workload.TCPConfig{Address: server.awaitPort(5000), Dial: fromClient})
	load := startLoad(t, client)
	for _, host := range []string{"b", "c"} {
		server.move(host)
		t.Logf("the longest silence was %v", load.Lap())
	}
	load.finish()
	t.Logf("%+v", client.Result())
}

// A pod is the client of a server outside.
func TestOutgoing(t *testing.T) {
	address := netip.AddrPortFrom(theLab.Address(lab.Client), 5001).String()
	listener, err := theLab.Listen(bounded(t), lab.Client, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	peers := &peerRecorder{Listener: listener}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() {
		served <- workload.ServeTCP(ctx, peers, 1<<20, func(err error) { t.Errorf("the server outside: %v", err) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	client := newLoadgen(t, "", "tcp", "-address", address)
	client.awaitStarted()
	client.move("b")
	client.move("c")
	client.finish()
	// The pod is known outside by its own public address, on every host.
	if want := client.inspect().PublicAddress.String(); len(peers.hosts) != 1 || peers.hosts[0] != want {
		t.Errorf("connections from %v; want one, from %s", peers.hosts, want)
	}
}

// peerRecorder notes where connections come from.
type peerRecorder struct {
	net.Listener
	hosts []string
}

func (r *peerRecorder) Accept() (net.Conn, error) {
	conn, err := r.Listener.Accept()
	if err == nil {
		host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
		r.hosts = append(r.hosts, host)
	}
	return conn, err
}

// Two pods are connected, by name and by address, and both move.
func TestBetweenPods(t *testing.T) {
	server := newLoadgen(t, "server", "serve-tcp", "-listen", ":5000")
	server.awaitPort(5000)
	virtual := netip.AddrPortFrom(server.inspect().VirtualAddress, 5000).String()
	clients := []*testPod{
		newLoadgen(t, "by-address", "tcp", "-address", virtual),
		newLoadgen(t, "by-name", "tcp", "-address", server.name+"."+lab.Zone+":5000"),
	}
	for _, c := range clients {
		c.awaitStarted()
	}
	server.move("b")
	for _, c := range clients {
		c.move("b") // now both ends are on one host
	}
	clients[0].move("c")
	server.move("a")
	for _, c := range clients {
		c.finish()
	}
}
