package pagesync

import (
	"bytes"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"
)

// TestUrgentFirst: while something is being written, what is urgent overtakes
// all that waits.
func TestUrgentFirst(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	l := newLink(ours)
	var wg sync.WaitGroup
	send := func(urgent bool, number uint64) {
		wg.Go(func() {
			if err := l.send(urgent, true, Frame{Kind: KindMark, Number: number}); err != nil {
				t.Error(err)
			}
		})
	}
	waiting := func(n int) {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); ; runtime.Gosched() {
			l.mu.Lock()
			urgent, taken := l.urgent, l.taken
			l.mu.Unlock()
			if urgent == n && taken {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d wait, taken %v; want %d", urgent, taken, n)
			}
		}
	}
	send(false, 0) // blocks: nobody reads
	waiting(0)
	for range 3 {
		send(false, 1)
	}
	send(true, 2)
	send(true, 2)
	waiting(2)
	r := NewReader(theirs)
	var order []uint64
	for range 6 {
		f, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		order = append(order, f.Number)
	}
	wg.Wait()
	if order[0] != 0 || order[1] != 2 || order[2] != 2 {
		t.Errorf("the order is %v", order)
	}
}

func TestLinkFails(t *testing.T) {
	ours, theirs := net.Pipe()
	l := newLink(ours)
	theirs.Close()
	if err := l.send(false, true, Frame{Kind: KindDone}); err == nil {
		t.Error("sending to nobody worked")
	}
	<-l.gone
	if err := l.send(true, true, Frame{Kind: KindDone}); err == nil || err.Error() != l.cause().Error() {
		t.Errorf("sending again: %v; the cause is %v", err, l.cause())
	}
}

func TestWants(t *testing.T) {
	var w wants
	w.init()
	gone := make(chan struct{})
	w.add(Region{1, 0x1000, 2*chunkSize + 0x2000}, false, gone)
	w.add(Region{2, 0x5000, 0x6000}, true, gone)
	type part struct {
		Region
		fault bool
	}
	var parts []part
	for range 4 {
		r, fault, ok := w.next(gone)
		if !ok {
			t.Fatal("nothing more")
		}
		parts = append(parts, part{r, fault})
	}
	want := []part{{Region{2, 0x5000, 0x6000}, true}, {Region{1, 0x1000, chunkSize}, false},
		{Region{1, chunkSize, 2 * chunkSize}, false}, {Region{1, 2 * chunkSize, 2*chunkSize + 0x2000}, false}}
	for i := range want {
		if parts[i] != want[i] {
			t.Errorf("part %d is %v; want %v", i, parts[i], want[i])
		}
	}
	if n := len(w.faults) + len(w.rest); n != 0 {
		t.Errorf("%d wants are left", n)
	}
	for range maxWants {
		w.add(Region{1, 0x1000, 0x2000}, false, gone)
	}
	full := make(chan bool)
	go func() { full <- w.add(Region{1, 0x1000, 0x2000}, false, gone) }()
	close(gone)
	w.wake()
	if <-full {
		t.Error("a want was taken after the connection ended")
	}
	if _, _, ok := w.next(gone); ok {
		t.Error("a want was given after the connection ended")
	}
}

// TestCompression: pages are compressed where the link is slower than that, and
// come out as they were.
func TestCompression(t *testing.T) {
	c, err := newCompressor()
	if err != nil {
		t.Fatal(err)
	}
	if c.worth(0) {
		t.Error("worth it for a link of unknown rate")
	}
	if c.worth(100 << 30) {
		t.Error("worth it for a link faster than memory")
	}
	const slow = 1 << 10
	text := bytes.Repeat([]byte("memory of a pod "), chunkSize/16)
	var packed []byte
	for range 8 { // so that its speed is known
		var ok bool
		if packed, ok = c.compress(packed[:0], text); !ok {
			t.Fatal("text is not compressed")
		}
	}
	for range probeEvery * 2 {
		if !c.worth(slow) {
			t.Fatal("not worth it for a slow link")
		}
	}
	var ours bytes.Buffer
	w := NewWriter(&ours)
	if err := w.Write(Frame{Kind: KindData, Flags: FlagZstd, PID: 1, Pages: chunkPages, Payload: packed}); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if f, err := NewReader(&ours).Next(); err != nil || !bytes.Equal(f.Payload, text) {
		t.Errorf("%d bytes come out, %v", len(f.Payload), err)
	}
}
