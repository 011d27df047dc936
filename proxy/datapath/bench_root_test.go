//go:build root

package datapath

import (
	"net/netip"
	"testing"
	"time"
)

// crowd is a state of many pods.
func crowd(l *lab, pods int) State {
	s := l.state()
	for number := range pods {
		s.Pods = append(s.Pods, PodPath{Binding: l.newBinding(number+1, 0)})
	}
	return s
}

// BenchmarkSetOneOfMany changes one pod of 1,000 per Set.
func BenchmarkSetOneOfMany(b *testing.B) {
	l := newLab(b, 1)
	l.config.Linger = time.Hour
	l.restart()
	s := crowd(l, 1000)
	l.set(s)
	for b.Loop() {
		s.Pods[500].Binding = l.newBinding(501, 0)
		if err := l.datapath.Set(b.Context(), s); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUpdateOneOfMany adds a pod to 10,000, and removes it.
func BenchmarkUpdateOneOfMany(b *testing.B) {
	l := newLab(b, 1)
	s := crowd(l, 10000)
	l.set(s)
	for b.Loop() {
		p := PodPath{Binding: l.newBinding(10001, 0)}
		added := Change{Hosts: s.Hosts, Pods: []PodPath{p}}
		if err := l.datapath.Update(b.Context(), added); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		gone := Change{Hosts: s.Hosts, Gone: []netip.Addr{p.Binding.Virtual}}
		if err := l.datapath.Update(b.Context(), gone); err != nil {
			b.Fatal(err)
		}
		l.settle()
		b.StartTimer()
	}
}

// BenchmarkSetNothing compares 1,000 pods and changes none.
func BenchmarkSetNothing(b *testing.B) {
	l := newLab(b, 1)
	s := crowd(l, 1000)
	l.set(s)
	for b.Loop() {
		if err := l.datapath.Set(b.Context(), s); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHoldAndRelease moves a pod whose next device has been made early;
// what it reports besides is for the two calls alone.
func BenchmarkHoldAndRelease(b *testing.B) {
	l := newLab(b, 1)
	l.set(crowd(l, 1))
	var held, released time.Duration
	current := l.newBinding(1, 0)
	for b.Loop() {
		next := l.newBinding(1, 0)
		if err := l.datapath.Set(b.Context(), State{Pods: []PodPath{{Binding: current, Next: &next}}}); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		if err := l.datapath.Hold(current.Virtual); err != nil {
			b.Fatal(err)
		}
		held += time.Since(start)
		start = time.Now()
		if err := l.datapath.Release(current.Virtual, next); err != nil {
			b.Fatal(err)
		}
		released += time.Since(start)
		current = next
	}
	b.ReportMetric(float64(held.Nanoseconds())/float64(b.N), "ns/hold")
	b.ReportMetric(float64(released.Nanoseconds())/float64(b.N), "ns/release")
}
