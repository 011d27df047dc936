//go:build root

package datapath

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"podd/vnet/vnettest"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestQueueGoesFirst lets the queue of a pod that stays go while its sender goes
// on: nothing overtakes it.
func TestQueueGoesFirst(t *testing.T) {
	l := newLab(t, 1)
	p := l.addPod(0)
	var receiver net.PacketConn
	vnettest.Do(t, p.path, func() (err error) {
		receiver, err = net.ListenPacket("udp4", ":9")
		return err
	})
	t.Cleanup(func() { receiver.Close() })
	var sender net.Conn
	l.Client.Do(t, func() (err error) {
		sender, err = net.Dial("udp4", p.public()+":9")
		return err
	})
	t.Cleanup(func() { sender.Close() })
	number := uint64(0)
	send := func() error {
		number++
		_, err := sender.Write(binary.BigEndian.AppendUint64(nil, number))
		return err
	}
	receive := func() (uint64, error) {
		var b [8]byte
		if err := receiver.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			return 0, err
		}
		_, _, err := receiver.ReadFrom(b[:])
		return binary.BigEndian.Uint64(b[:]), err
	}

	// settle empties the socket: it is when what was sent last has come, for which
	// the socket, or the way there when nothing has gone it yet, may have had no
	// room.
	settle := func() {
		t.Helper()
		vnettest.Eventually(t, "what was sent last arrives", func() bool {
			if err := send(); err != nil {
				t.Fatal(err)
			}
			for {
				got, err := receive()
				if err != nil || got == number {
					return err == nil
				}
			}
		})
	}

	// A socket that nobody reads takes hardly more than queued, the proxy's queue
	// hardly more than both.
	const queued, flood, rounds = 150, 800, 20
	l.set(l.state())
	before := l.snapshot()
	for range rounds {
		settle()
		if err := l.datapath.Hold(p.binding.Virtual); err != nil {
			t.Fatal(err)
		}
		first := number + 1
		for range queued {
			if err := send(); err != nil {
				t.Fatal(err)
			}
		}
		begun, flooded := make(chan struct{}), make(chan error, 1)
		go func() {
			close(begun)
			var failures []error
			for range flood {
				failures = append(failures, send())
			}
			flooded <- errors.Join(failures...)
		}()
		<-begun
		if err := errors.Join(l.datapath.Abort(p.binding.Virtual), <-flooded); err != nil {
			t.Fatal(err)
		}
		for want := first; want < first+queued; want++ {
			if got, err := receive(); err != nil || got != want {
				t.Fatalf("datagram %d (%v) arrived where %d of those queued was due", got, err, want)
			}
		}
	}
	if after := l.snapshot(); after != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, after)
	}
}

// TestInterruptedAbort kills the proxy after each single step of an abort. What
// was queued, and what waited beside it, must arrive once the next proxy has set
// the state, and later holds hold.
func TestInterruptedAbort(t *testing.T) {
	steps := []func(k *kernel, virtual netip.Addr, dev *device) error{
		func(k *kernel, virtual netip.Addr, dev *device) error { return k.detour(virtual, dev) },
		func(k *kernel, virtual netip.Addr, dev *device) error {
			return k.setNeighbor(dev, virtual, neighborOpen)
		},
		func(k *kernel, virtual netip.Addr, dev *device) error { return k.setRoute(virtual, dev) },
	}
	for done := range len(steps) + 1 {
		t.Run(fmt.Sprintf("after %d steps", done), func(t *testing.T) {
			l := newLab(t, 1)
			p := l.addPod(0)
			l.set(l.state())
			vnettest.Serve(t, p.path, ":80", "pod")
			c := vnettest.Dial(t, l.Client.Path, p.public()+":80")
			vnettest.ExpectGreeting(t, c, "pod")
			if err := l.datapath.Hold(p.binding.Virtual); err != nil {
				t.Fatal(err)
			}
			dev, sent := l.datapath.devices[p.binding.Label], ""
			for _, step := range append(steps[:done:done], nil) {
				if _, err := c.Write([]byte("held")); err != nil {
					t.Fatal(err)
				}
				if sent += "held"; step == nil {
					break
				}
				if err := step(l.datapath.kernel, p.binding.Virtual, dev); err != nil {
					t.Fatal(err)
				}
			}
			l.restart()
			l.set(l.state())
			vnettest.ExpectGreeting(t, c, sent)
			if err := vnettest.Echo(c, "and on"); err != nil {
				t.Error(err)
			}
			l.Proxy.Do(t, func() error {
				routes, err := netlink.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: routeProtocol}, netlink.RT_FILTER_PROTOCOL)
				for _, r := range routes {
					if r.Gw != nil {
						t.Errorf("a detour is left: %v", r)
					}
				}
				return err
			})
			if dev := l.datapath.devices[p.binding.Label]; dev.detoured || dev.virtual != p.binding.Virtual {
				t.Errorf("the device is %+v", dev)
			}
			changes := l.datapath.Stats().Changes
			l.datapath.Resync()
			l.set(l.state())
			if got := l.datapath.Stats().Changes - changes; got > 2 {
				t.Errorf("another comparison made %d changes", got)
			}
		})
	}
}
