//go:build root

package checkpoint

import (
	"testing"
	"time"
)

// move is a move in progress: held at both ends.
type move struct {
	dump    *Dump
	result  *DumpResult
	restore *Restore
	init    int
}

// begin dumps the pod at one place and restores it at another.
func begin(t *testing.T, e *Engine, pid int, from, to *place) *move {
	t.Helper()
	return beginWith(t, e, pid, from, to, func(*DumpOptions) {}, func(*RestoreOptions) {})
}

// beginWith is begin with other options.
func beginWith(t *testing.T, e *Engine, pid int, from, to *place, dump func(*DumpOptions), restore func(*RestoreOptions)) *move {
	t.Helper()
	ctx := t.Context()
	sourceConn, targetConn := pagesPipe(t)
	m := &move{}
	var err error
	restoreOptions := to.restoreOptions()
	restore(&restoreOptions)
	m.restore, err = e.PrepareRestore(ctx, restoreOptions)
	must(t, err)
	t.Cleanup(func() {
		if err := m.restore.Abort(); err != nil {
			t.Error(err)
		}
	})
	must(t, to.block())
	options := from.dumpOptions(pid)
	options.Pages = sourceConn
	dump(&options)
	m.dump, err = e.PrepareDump(ctx, options)
	must(t, err)
	t.Cleanup(func() {
		if err := m.dump.Abort(); err != nil {
			t.Error(err)
		}
	})
	received := to.receive(ctx, targetConn)
	m.result, err = m.dump.Run(ctx)
	must(t, err)
	stats, err := m.dump.SendImages(sourceConn)
	must(t, err)
	must(t, <-received)
	arrived := time.Now()
	m.init, err = m.restore.Run(ctx)
	must(t, err)
	t.Logf("freeze %v, dump %v, image complete %v after the freeze, restore %v; %+v of memory, %+v of images, %d processes, %d connections",
		m.result.Freeze, m.result.Dump, arrived.Sub(m.result.FrozenAt), time.Since(arrived),
		m.result.Pages, stats, m.result.Processes, m.result.Connections)
	return m
}

// commit lets the target run and the source die.
func (m *move) commit(t *testing.T) {
	t.Helper()
	must(t, m.restore.Commit(t.Context()))
	t.Logf("from freeze to run %v", time.Since(m.result.FrozenAt))
	must(t, m.dump.Commit(t.Context()))
	t.Cleanup(func() {
		m.restore.Close()
		if err := m.restore.kill(); err != nil {
			t.Error(err)
		}
	})
}

// TestMove moves a pod there, back, and there again, in the middle of a stream.
func TestMove(t *testing.T) {
	for name, root := range cgroupRoots(t) {
		t.Run(name, func(t *testing.T) { testMove(t, newWorldIn(t, root)) })
	}
}

func testMove(t *testing.T, w *world) {
	e := openEngine(t)
	pod := w.source.start(t, 64)
	c := w.control(t)
	was := c.ask(t)
	if was.pid != 1 {
		t.Fatalf("the pod's init has pid %d", was.pid)
	}
	s := w.stream(t)
	pid := pod.pid
	from, to := w.source, w.target
	for i := range 3 {
		s.progress(t)
		if b := from.preflight(t, pid); len(b) > 0 {
			t.Errorf("blockers: %+v", b)
		}
		m := begin(t, e, pid, from, to)
		m.commit(t)
		from.empty(t)
		if want := 2 + i; m.result.Processes != 1 || m.result.Connections != want {
			t.Errorf("%d processes and %d connections, want 1 and %d", m.result.Processes, m.result.Connections, want)
		}
		if m.result.Pages.Bytes < 64<<20 {
			t.Errorf("%d bytes of memory", m.result.Pages.Bytes)
		}
		if m.result.Pages.Ahead == 0 {
			t.Error("no page that was sent ahead was still the same")
		}
		s.progress(t)
		unharmed(t, c, was)
		// New connections find the same process.
		unharmed(t, w.control(t), was)
		from.clear(t)
		to.clear(t)
		pid = m.init
		from, to = to, from
	}
	s.finish(t)
}
