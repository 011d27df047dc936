//go:build root

package pager

import (
	"context"
	"math/rand/v2"
	"testing"
	"time"

	"podd/pagesync"
)

func bounded(t testing.TB, limit time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	t.Cleanup(cancel)
	return ctx
}

// preCopy sends all there is in passes, as a source does that has everything at the
// target before the restore.
func preCopy(r *rand.Rand) func(c *sourceConn) {
	return func(c *sourceConn) {
		right := func(address uint64) bool { return mix(address)%3 != 0 }
		c.say(pagesync.Frame{Kind: pagesync.KindRegions, Regions: c.regions})
		for _, p := range pieces(r, c.regions, 64) {
			c.candidates(p, right)
		}
		c.say(pagesync.Frame{Kind: pagesync.KindMark, Number: 7})
		c.say(pagesync.Frame{Kind: pagesync.KindRegions, Flags: pagesync.FlagFinal, Regions: c.regions})
		for _, p := range pieces(r, c.regions, 64) {
			for a := p.Start; a < p.End; a += pageSize {
				if right(a) {
					c.say(pagesync.Frame{Kind: pagesync.KindSame, PID: p.PID, Address: a, Pages: 1})
				} else {
					c.pages(pagesync.Region{PID: p.PID, Start: a, End: a + pageSize})
				}
			}
		}
		c.say(pagesync.Frame{Kind: pagesync.KindDone})
	}
}

func TestPreCopy(t *testing.T) {
	seed := rand.Uint64() >> 1
	t.Logf("seed %d", seed)
	s := newTestSource(t, seed)
	pod := startPod(t, podOptions{seed: seed, pid: 5, regions: 4, pages: 700, ops: 2000, threads: 2, forks: 4})
	s.regions = pod.regions
	s.serve = preCopy(rand.New(rand.NewPCG(seed, 1)))
	p := startPager(t, s.options(t, ""))
	must(t, p.Attach(t.Context(), pod.pid, pod.uffd))
	pod.uffd.Close()
	must(t, p.Verify(bounded(t, time.Minute), true))
	must(t, p.Run())
	pod.start(t)
	pod.finish(t, time.Minute)
	must(t, p.Wait(bounded(t, time.Minute)))
	t.Logf("%+v", p.Status())
}

// A pod that runs again has the processors to itself for a moment, but gets what it
// touches.
func TestRest(t *testing.T) {
	seed := rand.Uint64() >> 1
	t.Logf("seed %d", seed)
	s := newTestSource(t, seed)
	pod := startPod(t, podOptions{seed: seed, pid: 5, regions: 4, pages: 700, ops: 2000, threads: 2, forks: 4})
	s.regions = pod.regions
	s.serve = preCopy(rand.New(rand.NewPCG(seed, 1)))
	p := startPager(t, s.options(t, ""))
	must(t, p.Attach(t.Context(), pod.pid, pod.uffd))
	pod.uffd.Close()
	must(t, p.Verify(bounded(t, time.Minute), true))
	begun := time.Now()
	must(t, p.Run())
	// It stands still, so nothing but the background fills its memory.
	must(t, p.Wait(bounded(t, time.Minute)))
	if took := time.Since(begun); took < restTime {
		t.Errorf("everything was filled %v after the pod began to run, want at least %v", took, restTime)
	}
	pod.start(t)
	pod.finish(t, time.Minute)
}
