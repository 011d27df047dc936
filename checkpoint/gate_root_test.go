//go:build root

package checkpoint

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestGate asks for a restore before there are images, of a CRIU that waits for them and of one that
// does not.
func TestGate(t *testing.T) {
	w := newWorld(t)
	waits := openEngine(t)
	hasty := openEngine(t)
	hasty.pageFilter = filepath.Join(t.TempDir(), "hasty.so")
	must(t, buildFilter(hasty.pageFilter, "gate.c", "testdata/forgetful/open.c"))
	pod := w.source.start(t, 4)
	c := w.control(t)
	was := c.ask(t)
	pid := pod.pid
	from, to := w.source, w.target
	for _, e := range []*Engine{waits, hasty} {
		m, _ := lazyMove(t, e, pid, from, to)
		if m.restore.asked != (e == waits) {
			t.Errorf("CRIU waited for the images: %v", m.restore.asked)
		}
		m.commit(t)
		from.empty(t)
		unharmed(t, c, was)
		from.clear(t)
		to.clear(t)
		pid = m.init
		from, to = to, from
	}
}

// TestGateForOthers asks for a restore in place of what turns out to be an image of a podd that knew
// no such restore.
func TestGateForOthers(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 4)
	c := w.control(t)
	was := c.ask(t)
	carrier := newCarrier(t)
	ro := w.target.restoreOptions()
	ro.Lazy = carrier.lazy
	r, err := e.PrepareRestore(t.Context(), ro)
	must(t, err)
	t.Cleanup(func() { must(t, r.Abort()) })

	sourceConn, targetConn := pagesPipe(t)
	o := w.source.dumpOptions(pod.pid)
	o.Pages, o.LeaveOut = sourceConn, carrier.leaveOut(pod.pid)
	d, err := e.PrepareDump(t.Context(), o)
	must(t, err)
	t.Cleanup(func() { must(t, d.Abort()) })
	received := w.target.receive(t.Context(), targetConn)
	_, err = d.Run(t.Context())
	must(t, err)
	must(t, os.WriteFile(filepath.Join(w.source.images, leftOutName), []byte("1\n"), 0o600))
	_, err = d.SendImages(sourceConn)
	must(t, err)
	must(t, <-received)

	first := r.worker
	init, err := r.Run(t.Context())
	must(t, err)
	if r.inPlace != nil || r.worker == first {
		t.Errorf("restored in place: %v, by the CRIU that was to do so: %v", r.inPlace != nil, r.worker == first)
	}
	carrier.equal(t, init)
	must(t, r.Abort())
	w.target.empty(t)
	must(t, d.Abort())
	unharmed(t, c, was)
}

// TestKilledAtGate kills a CRIU that waits for images.
func TestKilledAtGate(t *testing.T) {
	w := newWorld(t)
	r, err := openEngine(t).PrepareRestore(t.Context(), w.target.restoreOptions())
	must(t, err)
	if !r.asked {
		t.Error("CRIU does not wait for the images")
	}
	must(t, unix.Kill(r.worker.pid(), unix.SIGKILL))
	<-r.worker.exited
	if err := r.letBegin(false); !errors.Is(err, errWorkerGone) {
		t.Errorf("error is %v, want %v", err, errWorkerGone)
	}
	must(t, r.Abort())
	w.target.empty(t)
}
