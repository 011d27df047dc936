//go:build root

package datapath

import (
	"errors"
	"io"
	"net"
	"testing"

	"podd/pod"
	"podd/vnet/vnettest"
)

// TestReachability checks every direction a pod can be reached and can reach
// others in.
func TestReachability(t *testing.T) {
	l := newLab(t, 2)
	// The first two are on one host and use one port.
	pods := []*labPod{l.addPod(0), l.addPod(0), l.addPod(1)}
	l.set(l.state())
	for _, p := range pods {
		vnettest.Serve(t, p.path, ":80", "this is "+p.virtual())
	}
	for _, to := range pods {
		greeting := "this is " + to.virtual()
		vnettest.ExpectGreeting(t, vnettest.Dial(t, l.Client.Path, to.public()+":80"), greeting)
		vnettest.ExpectGreeting(t, vnettest.Dial(t, l.Proxy.Path, to.virtual()+":80"), greeting)
		for _, from := range pods {
			vnettest.ExpectGreeting(t, vnettest.Dial(t, from.path, to.virtual()+":80"), greeting)
			// Also from a pod to itself.
			vnettest.ExpectGreeting(t, vnettest.Dial(t, from.path, to.public()+":80"), greeting)
		}
	}

	// A server outside sees the pod's public address.
	listener := vnettest.Listen(t, l.Client.Path, ":80")
	for _, p := range pods {
		vnettest.Dial(t, p.path, l.Client.Address.String()+":80")
		c, err := listener.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if got := c.RemoteAddr().(*net.TCPAddr).IP.String(); got != p.public() {
			t.Errorf("pod %s is seen as %s, want %s", p.virtual(), got, p.public())
		}
		c.Close()
	}
}

// TestMoveUnderTraffic moves a pod to and fro while it is talked to, and while
// it talks to others.
func TestMoveUnderTraffic(t *testing.T) {
	for name, hold := range map[string]bool{"held": true, "not held": false} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, 2)
			p, neighbor := l.addPod(0), l.addPod(0)
			l.set(l.state())
			vnettest.Serve(t, p.path, ":80", "pod")
			vnettest.Serve(t, neighbor.path, ":80", "neighbor")
			vnettest.Serve(t, l.Client.Path, ":80", "outside")
			conversations := []*conversation{
				converse(t, l.Client.Path, p.public()+":80", "pod"),
				converse(t, p.path, l.Client.Address.String()+":80", "outside"),
				converse(t, p.path, neighbor.virtual()+":80", "neighbor"),
				converse(t, neighbor.path, p.public()+":80", "pod"),
			}
			for _, host := range []int{1, 0, 1} {
				l.move(p, host, hold)
				for _, c := range conversations {
					c.progress(t)
				}
			}
			// Then the other end of the connection between the two.
			l.move(neighbor, 1, hold)
			for _, c := range conversations {
				c.progress(t)
				c.end(t)
			}
			if got := l.datapath.Stats().Switches; got != 4 {
				t.Errorf("%d switches were counted, want 4", got)
			}
		})
	}
}

// TestHoldQueues checks that what is sent to a held pod waits in the proxy,
// new connections included, and arrives after the release.
func TestHoldQueues(t *testing.T) {
	l := newLab(t, 2)
	p := l.addPod(0)
	next := l.newBinding(1, 1)
	l.set(l.state().with(p.binding.Virtual, func(path *PodPath) { path.Next = &next }))
	vnettest.Serve(t, p.path, ":80", "pod")
	before := vnettest.Dial(t, l.Client.Path, p.public()+":80")
	vnettest.ExpectGreeting(t, before, "pod")

	if err := l.datapath.Hold(p.binding.Virtual); err != nil {
		t.Fatal(err)
	}
	if since, held := l.datapath.Stats().Held[p.binding.Virtual]; !held || since.IsZero() {
		t.Error("the pod is not counted as held")
	}
	if _, err := before.Write([]byte("held")); err != nil {
		t.Fatal(err)
	}
	connected := make(chan *net.TCPConn, 1)
	address := p.public() + ":80"
	go func() {
		c, err := vnettest.TryDial(l.Client.Path, address, vnettest.Timeout)
		if err != nil {
			t.Error(err)
		}
		connected <- c
	}()
	l.transplant(p, next, 1)
	select {
	case <-connected:
		t.Fatal("a connection was made to a held pod")
	default:
	}
	l.unblock(p)
	for range 2 {
		if err := l.datapath.Release(p.binding.Virtual, next); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]byte, 4)
	if _, err := io.ReadFull(before, got); err != nil || string(got) != "held" {
		t.Errorf("got %q, %v", got, err)
	}
	if c := <-connected; c != nil {
		vnettest.ExpectGreeting(t, c, "pod")
		c.Close()
	}
	if held := l.datapath.Stats().Held; len(held) != 0 {
		t.Errorf("still held: %v", held)
	}
	// The next Set finds everything done.
	changes := l.datapath.Stats().Changes
	l.settle()
	l.set(l.state())
	if got := l.datapath.Stats().Changes - changes; got > 1 {
		t.Errorf("a Set after the release made %d changes, want one deletion at most", got)
	}
}

// TestAbort takes a hold back, by call and by state.
func TestAbort(t *testing.T) {
	l := newLab(t, 2)
	p := l.addPod(0)
	l.set(l.state())
	vnettest.Serve(t, p.path, ":80", "pod")
	c := converse(t, l.Client.Path, p.public()+":80", "pod")
	for range 3 {
		next := l.newBinding(1, 1)
		reserved := l.state().with(p.binding.Virtual, func(path *PodPath) { path.Next = &next })
		l.set(reserved)
		if err := l.datapath.Hold(p.binding.Virtual); err != nil {
			t.Fatal(err)
		}
		if err := l.datapath.Abort(p.binding.Virtual); err != nil {
			t.Fatal(err)
		}
		c.progress(t)
		l.set(reserved.with(p.binding.Virtual, func(path *PodPath) { path.Held = true }))
		l.set(l.state())
		c.progress(t)
	}
	c.end(t)
	l.settle()
	if got := l.datapath.Stats(); got.Devices != 1 || got.Switches != 0 {
		t.Errorf("after aborts: %+v, want one device and no switch", got)
	}
}

// TestUnknownPod checks the errors of the direct calls.
func TestUnknownPod(t *testing.T) {
	l := newLab(t, 1)
	b := l.newBinding(9, 0)
	for name, err := range map[string]error{
		"Hold": l.datapath.Hold(b.Virtual), "Abort": l.datapath.Abort(b.Virtual), "Release": l.datapath.Release(b.Virtual, b),
	} {
		if !errors.Is(err, pod.ErrNotFound) {
			t.Errorf("%s of an unknown pod: got %v, want %v", name, err, pod.ErrNotFound)
		}
	}
	other := b
	other.Label = 0
	if err := l.datapath.Release(b.Virtual, other); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("Release to label 0: got %v, want %v", err, pod.ErrInvalid)
	}
}
