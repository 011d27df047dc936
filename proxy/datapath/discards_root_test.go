//go:build root

package datapath

import (
	"net"
	"testing"

	"podd/vnet/vnettest"
)

// TestQueueIsBounded sends more to a held pod than its queue takes: the kernel
// keeps the newest, and counts what it drops.
func TestQueueIsBounded(t *testing.T) {
	l := newLab(t, 1)
	if err := l.datapath.Close(); err != nil {
		t.Fatal(err)
	}
	l.config.HoldBytes = 64 << 10
	l.open()
	p := l.addPod(0)
	l.set(l.state())
	arrived := vnettest.ListenUDP(t, p.path, ":9")
	var conn net.Conn
	l.Client.Do(t, func() (err error) {
		conn, err = net.Dial("udp4", p.public()+":9")
		return err
	})
	t.Cleanup(func() { conn.Close() })
	before, err := Discards()
	if err != nil {
		t.Fatal(err)
	}
	l.set(l.state().with(p.binding.Virtual, func(path *PodPath) { path.Held = true }))
	const sent = 1000
	for range sent {
		if _, err := conn.Write([]byte("packet")); err != nil {
			t.Fatal(err)
		}
	}
	vnettest.Eventually(t, "packets are dropped", func() bool {
		now, err := Discards()
		return err == nil && now > before
	})
	if n := arrived(); n != 0 {
		t.Errorf("%d packets arrived during the hold", n)
	}
	l.set(l.state())
	total := 0
	vnettest.Eventually(t, "what was queued arrives", func() bool {
		total += arrived()
		return total > 0
	})
	if total >= sent/2 {
		t.Errorf("%d of %d packets were queued in 64 KiB", total, sent)
	}
}
