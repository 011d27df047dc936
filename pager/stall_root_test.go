//go:build root

package pager

import (
	"testing"
	"time"
)

// TestStallInSystemCall: freezing does not stop a thread that misses a page within a
// system call, nor does thawing, and it does not keep the pager busy.
func TestStallInSystemCall(t *testing.T) {
	w := newWorld(t, newSeed(t), 1, podOptions{regions: 2, pages: 300, ops: 500, env: []string{"POD_ASKS_KERNEL=1"}})
	w.source.deaf = w.all
	p := startPager(t, w.o)
	w.commit(t, p)
	eventually(t, "the stall is known", func() bool { return p.Status().State == StateStalled })
	before, err := p.Ask(t.Context())
	must(t, err)
	began := time.Now()
	<-time.After(time.Second)
	after, err := p.Ask(t.Context())
	must(t, err)
	most := 2*time.Since(began).Milliseconds()/againPause + 10
	if n := after.Faults - before.Faults; n > most {
		t.Errorf("%d faults while the pod stands still; want %d at most", n, most)
	}
	w.release()
	w.finish(t, p)
	if worst := p.Status().WorstFault; worst < silenceLimit {
		t.Errorf("no fault took longer than %v; the source was silent for %v", worst, silenceLimit)
	}
}
