//go:build root

package pagesync

import (
	"fmt"
	"log/slog"
	"net"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// discard is a pager that keeps nothing and verifies nothing.
func discard(conn net.Conn) error {
	r, w := NewReader(conn), NewWriter(conn)
	frame := Frame{Kind: KindHello}
	for {
		if err := w.Write(frame); err != nil {
			return err
		}
		if err := w.Flush(); err != nil {
			return err
		}
		for frame.Kind = 0; frame.Kind == 0; {
			f, err := r.Next()
			if err != nil {
				return err
			}
			switch f.Kind {
			case KindMark:
				frame = Frame{Kind: KindAck, Number: f.Number}
			case KindDone:
				frame = Frame{Kind: KindAck, Number: Done}
			}
		}
	}
}

func discarding(b *testing.B, init int) *Source {
	b.Helper()
	source, err := NewSource(SourceOptions{Init: init, Log: slog.New(slog.DiscardHandler)})
	must(b, err)
	ours, theirs := connection(b)
	served, read := make(chan error, 1), make(chan error, 1)
	go func() { served <- source.Serve(ours) }()
	go func() { read <- discard(theirs) }()
	b.Cleanup(func() {
		must(b, source.Close())
		<-served
		theirs.Close()
		<-read
	})
	must(b, source.Connected(b.Context()))
	return source
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// cpu returns the processor time that this program has used.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	must(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func pass(b *testing.B, s *Source) PassStats {
	b.Helper()
	stats, err := s.Pass(b.Context())
	must(b, err)
	return stats
}

// figures are of repetitions: for each name all that were measured.
type figures map[string][]float64

func (f figures) add(name string, v float64) { f[name] = append(f[name], v) }

// report gives the minimum and the median of each: the machine may have more to do.
func (f figures) report(b *testing.B) {
	for name, values := range f {
		slices.Sort(values)
		b.ReportMetric(values[0], name+"-min")
		b.ReportMetric(values[len(values)/2], name)
	}
}

// BenchmarkMemory moves the memory of one process to nowhere: first pass, a pass
// over memory that has not changed, one that has, freeze and finish.
func BenchmarkMemory(b *testing.B) {
	for _, c := range []struct{ mib, dirty int }{{64, 0}, {64, 50}, {2048, 0}, {2048, 50}} {
		b.Run(fmt.Sprintf("%dMiB/dirty%d", c.mib, c.dirty), func(b *testing.B) {
			init := startPod(b, "fill", fmt.Sprint(c.mib), fmt.Sprint(c.dirty))
			f := make(figures)
			for b.Loop() {
				s := discarding(b, init)
				stats, err := s.Survey(b.Context())
				must(b, err)
				f.add("survey-ms", ms(stats.Duration))
				stats = pass(b, s)
				f.add("first-ms", ms(stats.Duration))
				pass(b, s)
				stats = pass(b, s)
				f.add("pass-ms", ms(stats.Duration))
				f.add("changed-MiB", float64(stats.Changed)/(1<<20))
				stop(b, init)
				begin := time.Now()
				_, err = s.Freeze(b.Context())
				must(b, err)
				f.add("freeze-ms", ms(time.Since(begin)))
				final, err := s.Finish(b.Context())
				must(b, err)
				f.add("finish-ms", ms(final.Compared))
				f.add("final-MiB", float64(final.Sent)/(1<<20))
				cont(b, init)
				must(b, s.Close())
			}
			f.report(b)
		})
	}
}

// BenchmarkFreeze measures what the freeze waits for with many processes, and
// with as many mappings and threads as a desktop's have.
func BenchmarkFreeze(b *testing.B) {
	for _, c := range []struct{ processes, mappings, threads int }{{1, 1, 1}, {100, 5, 1}, {40, 300, 8}} {
		b.Run(fmt.Sprintf("%dprocesses%dmappings%dthreads", c.processes, c.mappings, c.threads), func(b *testing.B) {
			init := startPod(b, "many", fmt.Sprint(c.processes), fmt.Sprint(c.mappings), fmt.Sprint(c.threads))
			f := make(figures)
			for b.Loop() {
				s := discarding(b, init)
				pass(b, s)
				f.add("pass-ms", ms(pass(b, s).Duration))
				stop(b, init)
				begin, beginCPU := time.Now(), cpu(b)
				left, err := s.Freeze(b.Context())
				must(b, err)
				f.add("freeze-ms", ms(time.Since(begin)))
				f.add("freeze-cpu-ms", ms(cpu(b)-beginCPU))
				f.add("ranges", float64(len(left)))
				final, err := s.Finish(b.Context())
				must(b, err)
				f.add("finish-ms", ms(final.Compared))
				cont(b, init)
				must(b, s.Close())
			}
			f.report(b)
		})
	}
}
