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

// begin dumps the pod at the source and restores it at the target.
func (w *world) begin(t *testing.T, e *Engine, pod *testPod) *move {
	t.Helper()
	ctx := t.Context()
	sourceConn, targetConn := pagesPipe(t)
	options := w.source.dumpOptions(pod.pid)
	options.Pages = sourceConn
	m := &move{}
	var err error
	m.restore, err = e.PrepareRestore(ctx, w.target.restoreOptions())
	must(t, err)
	t.Cleanup(func() {
		m.restore.Close()
		if err := m.restore.Abort(); err != nil {
			t.Error(err)
		}
	})
	must(t, w.target.block())
	m.dump, err = e.PrepareDump(ctx, options)
	must(t, err)
	t.Cleanup(func() {
		if err := m.dump.Abort(); err != nil {
			t.Error(err)
		}
	})
	received := w.target.receive(ctx, targetConn)
	m.result, err = m.dump.Run(ctx)
	must(t, err)
	t.Logf("freeze %v, dump %v, %+v, %d processes, %d connections", m.result.Freeze, m.result.Dump, m.result.Pages, m.result.Processes, m.result.Connections)
	stats, err := SendImages(sourceConn, w.source.images)
	must(t, err)
	must(t, <-received)
	arrived := time.Now()
	t.Logf("image %+v complete after %v", stats, arrived.Sub(m.result.FrozenAt))
	m.init, err = m.restore.Run(ctx)
	must(t, err)
	t.Logf("restore %v", time.Since(arrived))
	return m
}

// commit lets the target run and the source die.
func (m *move) commit(t *testing.T) {
	t.Helper()
	must(t, m.restore.Commit(t.Context()))
	t.Logf("from freeze to run %v", time.Since(m.result.FrozenAt))
	must(t, m.dump.Commit(t.Context()))
	killAtEnd(t, m.restore)
}

// killAtEnd ends the restored pod when the test is over.
func killAtEnd(t *testing.T, r *Restore) {
	t.Cleanup(func() {
		if err := r.kill(); err != nil {
			t.Error(err)
		}
	})
}

func TestMove(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 64)
	before := w.control(t)
	was := before.ask(t)
	if was.pid != 1 {
		t.Fatalf("the pod's init has pid %d", was.pid)
	}
	s := w.stream(t)
	s.progress(t)

	m := w.begin(t, e, pod)
	m.commit(t)
	w.source.empty(t)

	s.finish(t)
	is := before.ask(t)
	if is.digest != was.digest || is.pid != 1 || is.host != was.host || is.ticks < was.ticks {
		t.Errorf("state was %+v, is %+v", was, is)
	}
	if m.result.Processes != 1 || m.result.Connections != 2 {
		t.Errorf("%d processes and %d connections, want 1 and 2", m.result.Processes, m.result.Connections)
	}
	if m.result.Pages.Bytes < 64<<20 {
		t.Errorf("%d bytes of memory", m.result.Pages.Bytes)
	}
	// New connections go to the same process.
	if now := w.control(t).ask(t); now.digest != was.digest {
		t.Errorf("memory is %s, was %s", now.digest, was.digest)
	}
}
