//go:build root

package pager

import "testing"

// BenchmarkAttach attaches a process again and again: it is in the freeze.
func BenchmarkAttach(b *testing.B) {
	s := newTestSource(b, 1)
	pod := startPod(b, podOptions{seed: 1, pid: 5, regions: 20, pages: 16})
	s.regions, s.serve = pod.regions, everything
	p := startPager(b, s.options(b, ""))
	for b.Loop() {
		must(b, p.Attach(b.Context(), pod.pid, pod.uffd))
	}
	must(b, p.Verify(b.Context(), true))
}

// BenchmarkVerify verifies and runs what is there already.
func BenchmarkVerify(b *testing.B) {
	s := newTestSource(b, 1)
	pod := startPod(b, podOptions{seed: 1, pid: 5, regions: 20, pages: 16})
	s.regions, s.serve = pod.regions, everything
	p := startPager(b, s.options(b, ""))
	must(b, p.Attach(b.Context(), pod.pid, pod.uffd))
	must(b, p.Verify(b.Context(), true))
	for b.Loop() {
		must(b, p.Verify(b.Context(), true))
	}
}
