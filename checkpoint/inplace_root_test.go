//go:build root

package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podd/procfs"
)

// startThreads starts a tree of processes with threads in a pod and returns the addresses
// of the areas for restartable sequences, by process.
func startThreads(t *testing.T, w *world, c *control, depth, threads, mappings int) map[int][]uint64 {
	t.Helper()
	must(t, compile(filepath.Join(w.source.root, "bin/threads"), "-static", "-pthread", "testdata/threads/threads.c"))
	run(t, "cp", filepath.Join(w.source.root, "bin/threads"), filepath.Join(w.target.root, "bin/threads"))
	c.do(t, "exec", "/bin/threads", depth, threads, mappings)
	want := 1
	for range depth {
		want *= 3
	}
	var names []string
	eventually(t, "all processes are there", func() bool {
		var err error
		names, err = filepath.Glob(filepath.Join(w.source.root, "tmp/rseq-*[0-9]"))
		must(t, err)
		return len(names) == want
	})
	areas := map[int][]uint64{}
	for _, name := range names {
		var pid int
		_, err := fmt.Sscanf(filepath.Base(name), "rseq-%d", &pid)
		must(t, err)
		b, err := os.ReadFile(name)
		must(t, err)
		for line := range strings.Lines(string(b)) {
			var address uint64
			_, err := fmt.Sscanf(line, "%x", &address)
			must(t, err)
			areas[pid] = append(areas[pid], address)
		}
		if len(areas[pid]) != threads+1 {
			t.Fatalf("process %d has %d areas, want %d", pid, len(areas[pid]), threads+1)
		}
	}
	return areas
}

// equalBut is carrier.equal, but for the areas, where the kernel writes.
func equalBut(t *testing.T, c *carrier, init int, areas map[int][]uint64) {
	t.Helper()
	processes, err := procfs.PodProcesses(init)
	must(t, err)
	among, seen := 0, 0
	for _, stat := range processes {
		numbers, err := procfs.NamespacePIDs(stat.PID)
		must(t, err)
		number := numbers[len(numbers)-1]
		for _, m := range c.copies[number] {
			is, err := readMemory(stat.PID, m.start, len(m.data))
			must(t, err)
			was := bytes.Clone(m.data)
			for _, a := range areas[number] {
				if a >= m.start && a < m.start+uint64(len(was)) {
					const areaSize = 32 // of struct rseq
					clear(was[a-m.start:][:areaSize])
					clear(is[a-m.start:][:areaSize])
					among++
				}
			}
			if !bytes.Equal(is, was) {
				t.Errorf("memory of process %d at %#x is not what it was", number, m.start)
			}
			seen++
		}
	}
	want := 0
	for _, m := range c.copies {
		want += len(m)
	}
	if seen != want || seen == 0 {
		t.Errorf("%d ranges compared, want %d", seen, want)
	}
	if among == 0 {
		t.Error("no area is in memory that was left out")
	}
}

// TestThreads moves processes whose threads the kernel writes to in a restore, before
// their memory is registered, in place and by CRIU.
func TestThreads(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 4)
	c := w.control(t)
	areas := startThreads(t, w, c, 2, 9, 8)
	was := c.ask(t)
	pid := pod.pid
	from, to := w.source, w.target
	for _, outOfPlace := range []bool{false, true, false} {
		e.outOfPlace.Store(outOfPlace)
		m, carrier := lazyMove(t, e, pid, from, to)
		if (m.restore.inPlace == nil) != outOfPlace {
			t.Errorf("restored in place: %v", !outOfPlace)
		}
		equalBut(t, carrier, m.init, areas)
		m.commit(t)
		from.empty(t)
		unharmed(t, c, was)
		if e.outOfPlace.Load() != outOfPlace {
			t.Error("a restore in place failed")
		}
		from.clear(t)
		to.clear(t)
		pid = m.init
		from, to = to, from
	}
}

// TestTouched leaves out of a dump what a restore touches: that one fails, the pod goes
// on, and the next is done by CRIU.
func TestTouched(t *testing.T) {
	w := newWorld(t)
	good := openEngine(t)
	forgetful := openEngine(t)
	forgetful.pageFilter = filepath.Join(t.TempDir(), "forgetful.so")
	must(t, buildFilter(forgetful.pageFilter, "rseq.c", "testdata/forgetful/kept.c"))
	pod := w.source.start(t, 4)
	c := w.control(t)
	areas := startThreads(t, w, c, 0, 3, 2)
	was := c.ask(t)
	carrier := newCarrier(t)

	sourceConn, targetConn := pagesPipe(t)
	o := w.source.dumpOptions(pod.pid)
	o.Pages, o.LeaveOut = sourceConn, carrier.leaveOut(pod.pid)
	d, err := forgetful.PrepareDump(t.Context(), o)
	must(t, err)
	t.Cleanup(func() { must(t, d.Abort()) })
	received := w.target.receive(t.Context(), targetConn)
	_, err = d.Run(t.Context())
	must(t, err)
	_, err = d.SendImages(sourceConn)
	must(t, err)
	must(t, <-received)

	ro := w.target.restoreOptions()
	ro.Lazy = carrier.lazy
	r, err := good.PrepareRestore(t.Context(), ro)
	must(t, err)
	if _, err := r.Run(t.Context()); !errors.Is(err, ErrTouched) {
		t.Fatalf("error is %v, want %v", err, ErrTouched)
	}
	w.target.empty(t)
	if names, err := os.ReadDir(w.target.images); err != nil || strings.Contains(fmt.Sprint(names), userfaultSocket) {
		t.Errorf("left over: %v, %v", names, err)
	}
	if good.canRestoreInPlace() {
		t.Error("the next restore would be in place, too")
	}

	// A podd that was killed has left its socket; the images are verified after this.
	must(t, os.WriteFile(filepath.Join(w.target.images, userfaultSocket), nil, 0o600))
	r, err = good.PrepareRestore(t.Context(), ro)
	must(t, err)
	if _, err := os.Lstat(filepath.Join(w.target.images, userfaultSocket)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket that was left over: %v", err)
	}
	init, err := r.Run(t.Context())
	must(t, err)
	equalBut(t, carrier, init, areas)
	must(t, r.Abort())
	w.target.empty(t)
	must(t, d.Abort())
	unharmed(t, c, was)
}

// TestHugePages restores while the kernel always uses huge pages: one around a page that
// CRIU restores would hide the memory that is to be filled in.
func TestHugePages(t *testing.T) {
	const setting = "/sys/kernel/mm/transparent_hugepage/enabled"
	b, err := os.ReadFile(setting)
	must(t, err)
	_, was, _ := strings.Cut(string(b), "[")
	was, _, _ = strings.Cut(was, "]")
	set := func(to string) { must(t, os.WriteFile(setting, []byte(to), 0)) }
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 4)
	c := w.control(t)
	areas := startThreads(t, w, c, 0, 3, 2)
	state := c.ask(t)
	carrier := newCarrier(t)
	t.Cleanup(func() { set(was) })
	m := beginWith(t, e, pod.pid, w.source, w.target,
		func(o *DumpOptions) { o.LeaveOut = carrier.leaveOut(pod.pid) },
		func(o *RestoreOptions) { o.Lazy = carrier.lazy; set("always") })
	set(was)
	if m.restore.inPlace != nil {
		t.Error("restored in place")
	}
	equalBut(t, carrier, m.init, areas)
	m.commit(t)
	unharmed(t, c, state)
}
