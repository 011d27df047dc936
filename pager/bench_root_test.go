//go:build root

package pager

import (
	"os"
	"path/filepath"
	"strings"
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

// BenchmarkFill fills 512 MiB that are on this host: how fast with nobody waiting,
// and how long who touches it waits meanwhile, by the pod's own clock.
func BenchmarkFill(b *testing.B) {
	const pages = 1 << 17
	for name, env := range map[string][]string{
		"untouched": nil,
		"random":    {"POD_MEASURE=4000"},
		"in order":  {"POD_MEASURE=131072", "POD_IN_ORDER=1"},
	} {
		b.Run(name, func(b *testing.B) {
			var filling, cpu time.Duration
			for b.Loop() {
				b.StopTimer()
				s := newTestSource(b, 1)
				pod := startPod(b, podOptions{seed: 1, pid: 5, regions: 1, pages: pages, env: append([]string{"POD_MEASURE=1"}, env...)})
				s.regions, s.serve = pod.regions, everything
				p := startPager(b, s.options(b, ""))
				must(b, p.Attach(b.Context(), pod.pid, pod.uffd))
				pod.uffd.Close()
				must(b, p.Verify(bounded(b, 30*time.Second), true))
				b.StartTimer()
				began := time.Now()
				if env != nil {
					pod.start(b)
				}
				must(b, p.Run())
				must(b, p.Wait(bounded(b, 30*time.Second)))
				filling += time.Since(began)
				b.StopTimer()
				if env == nil {
					pod.start(b)
				}
				pod.finish(b, time.Minute)
				cpu += threadTimeOf(b, p)
				status := p.Status()
				b.Logf("%d faults, worst %v; %s", status.Faults, status.WorstFault, pod.said())
				b.StartTimer()
			}
			n := float64(b.N) * pages * pageSize / 1e9
			b.ReportMetric(n/filling.Seconds(), "GB/s")
			b.ReportMetric(n/cpu.Seconds(), "GB/cpu-s")
		})
	}
}

// threadTimeOf is what the pager's thread has used, by its log.
func threadTimeOf(b *testing.B, p *Pager) time.Duration {
	b.Helper()
	log, err := os.ReadFile(filepath.Join(p.o.Dir, logName))
	must(b, err)
	_, after, _ := strings.Cut(string(log), "cpu=")
	word, _, _ := strings.Cut(after, "\n")
	d, err := time.ParseDuration(word)
	must(b, err)
	return d
}
