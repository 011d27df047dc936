//go:build root

package pager

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"podd/pagesync"
)

// everything sends all before the restore, in large frames.
func everything(c *sourceConn) {
	c.say(pagesync.Frame{Kind: pagesync.KindRegions, Regions: c.regions})
	c.say(pagesync.Frame{Kind: pagesync.KindRegions, Flags: pagesync.FlagFinal, Regions: c.regions})
	b := make([]byte, pagesync.MaxPayload)
	for i := range b {
		b[i] = byte(i) | 1
	}
	for _, r := range c.regions {
		for a := r.Start; a < r.End; {
			end := min(a+pagesync.MaxPayload, r.End)
			c.say(pagesync.Frame{Kind: pagesync.KindData, PID: r.PID, Address: a, Pages: int(end-a) / pageSize, Payload: b[:end-a]})
			a = end
		}
	}
	c.say(pagesync.Frame{Kind: pagesync.KindDone})
}

// TestMeasure is no test of speed: it says what was measured.
func TestMeasure(t *testing.T) {
	const pages = 1 << 17
	for _, c := range []struct {
		name string
		env  []string
	}{
		{"nothing is touched", nil},
		{"at random", []string{"POD_MEASURE=4000"}},
		{"in order", []string{"POD_MEASURE=131072", "POD_IN_ORDER=1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newTestSource(t, 1)
			pod := startPod(t, podOptions{seed: 1, pid: 5, regions: 1, pages: pages, env: append([]string{"POD_MEASURE=1"}, c.env...)})
			s.regions, s.serve = pod.regions, everything
			p := startPager(t, s.options(t, ""))
			must(t, p.Attach(t.Context(), pod.pid, pod.uffd))
			pod.uffd.Close()
			began := time.Now()
			must(t, p.Verify(bounded(t, 30*time.Second), true))
			stored := time.Since(began)
			began = time.Now()
			if c.env != nil {
				pod.start(t)
			}
			must(t, p.Run())
			must(t, p.Wait(bounded(t, 30*time.Second)))
			took := time.Since(began)
			if c.env == nil {
				pod.start(t)
			}
			pod.finish(t, time.Minute)
			status := p.Status()
			t.Logf("stored %d MiB at %.1f GB/s, filled %d MiB at %.2f GB/s; %d faults, worst %v", pages*pageSize>>20,
				pages*pageSize/stored.Seconds()/1e9, status.Filled>>20, float64(status.Filled)/took.Seconds()/1e9, status.Faults, status.WorstFault)
			b, err := os.ReadFile(filepath.Join(p.o.Dir, logName))
			must(t, err)
			t.Logf("%s%s", pod.said(), b)
		})
	}
}
