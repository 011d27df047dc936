//go:build root

package checkpoint

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDumpKilled kills CRIU with SIGKILL at each step. In the middle of a dump
// nothing can be promised for the connections, but before it and at the hold
// they survive.
func TestDumpKilled(t *testing.T) {
	for name, root := range cgroupRoots(t) {
		t.Run(name, func(t *testing.T) { testDumpKilled(t, newWorldIn(t, root)) })
	}
}

func testDumpKilled(t *testing.T, w *world) {
	e := openEngine(t)
	pod := w.source.start(t, 4)
	c := w.control(t)
	was := c.ask(t)
	s := w.stream(t)
	for _, step := range []string{"pre-dump", "query-ext-files"} {
		t.Run(step, func(t *testing.T) {
			o := w.source.dumpOptions(pod.pid)
			o.ImagesDir = t.TempDir()
			o.Log = onNotification(step, func(criu int) { must(t, unix.Kill(criu, unix.SIGKILL)) })
			d, err := e.PrepareDump(t.Context(), o)
			must(t, err)
			t.Cleanup(func() { must(t, d.Abort()) })
			_, err = d.Run(t.Context())
			var criu *CRIUError
			if !errors.As(err, &criu) || !strings.Contains(err.Error(), "CRIU died") {
				t.Errorf("error is %v", err)
			}
			s.progress(t)
			unharmed(t, c, was)
		})
	}
	t.Run("hold", func(t *testing.T) {
		o := w.source.dumpOptions(pod.pid)
		o.ImagesDir = t.TempDir()
		d, err := e.PrepareDump(t.Context(), o)
		must(t, err)
		_, err = d.Run(t.Context())
		must(t, err)
		must(t, d.worker.cmd.Process.Kill())
		<-d.Exited()
		if frozen, err := w.source.freezer.Frozen(); err != nil || !frozen {
			t.Fatalf("frozen %v, %v", frozen, err)
		}
		must(t, d.Abort())
		s.progress(t)
		unharmed(t, c, was)
	})
	t.Run("hold, then commit", func(t *testing.T) {
		o := w.source.dumpOptions(pod.pid)
		o.ImagesDir = t.TempDir()
		d, err := e.PrepareDump(t.Context(), o)
		must(t, err)
		_, err = d.Run(t.Context())
		must(t, err)
		must(t, d.worker.cmd.Process.Kill())
		<-d.Exited()
		must(t, d.Commit(t.Context()))
		w.source.empty(t)
		// Nobody told the client.
		must(t, w.source.unblock())
		select {
		case err := <-s.errs:
			t.Errorf("the client heard of the end: %v", err)
		default:
		}
	})
}

// TestCrashRecovery ends CRIU's conversation at the hold without calling a hook, as
// the death of the daemon does, and kills CRIU too. The next daemon finds the pod
// frozen and gives it back.
func TestCrashRecovery(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 1)
	c := w.control(t)
	was := c.ask(t)
	s := w.stream(t)
	for _, who := range []string{"daemon", "both"} {
		t.Run(who, func(t *testing.T) {
			o := w.source.dumpOptions(pod.pid)
			o.ImagesDir = t.TempDir()
			d, err := e.PrepareDump(t.Context(), o)
			must(t, err)
			_, err = d.Run(t.Context())
			must(t, err)
			want := 0 // CRIU undoes it
			if who == "both" {
				must(t, d.worker.cmd.Process.Kill())
				want = 2
			}
			must(t, d.worker.conn.Close())
			<-d.Exited()

			if frozen, err := w.source.freezer.Frozen(); err != nil || !frozen {
				t.Fatalf("frozen %v, %v", frozen, err)
			}
			n, err := Recover(pod.pid)
			must(t, err)
			if n != want {
				t.Errorf("%d sockets recovered, want %d", n, want)
			}
			must(t, w.source.unblock())
			must(t, w.source.freezer.Thaw())
			s.progress(t)
			unharmed(t, c, was)
		})
	}
	s.finish(t)
}
