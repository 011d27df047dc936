//go:build root

package checkpoint

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// awaitState waits until a process is in that state, as proc(5) has it.
func awaitState(t *testing.T, pid int, state byte) {
	t.Helper()
	eventually(t, "the process is in state "+string(state), func() bool {
		stat, err := procfs.ReadStat(pid)
		return err == nil && stat.State == state
	})
}

// TestStopped moves a pod with a process that is stopped, as by Ctrl-Z in a
// shell. It is stopped afterwards, and goes on when it is told to.
func TestStopped(t *testing.T) {
	for name, root := range cgroupRoots(t) {
		t.Run(name, func(t *testing.T) {
			w := newWorldIn(t, root)
			e := openEngine(t)
			pod := w.source.start(t, 1)
			c := w.control(t)
			was := c.ask(t)
			must(t, unix.Kill(pod.pid, unix.SIGSTOP))
			awaitState(t, pod.pid, 'T')
			m := begin(t, e, pod.pid, w.source, w.target)
			must(t, m.restore.Abort())
			must(t, m.dump.Abort())
			awaitState(t, pod.pid, 'T')

			w.source.clear(t)
			w.target.clear(t)
			m = begin(t, e, pod.pid, w.source, w.target)
			m.commit(t)
			awaitState(t, m.init, 'T')
			must(t, unix.Kill(m.init, unix.SIGCONT))
			unharmed(t, c, was)
		})
	}
}

// TestSeizeInterrupted stops a process behind CRIU's back, when it has been
// decided how to seize them all. In version 1 of cgroups CRIU then waits for
// it, and must be got out of there.
func TestSeizeInterrupted(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 1)
	c := w.control(t)
	was := c.ask(t)
	options := w.source.dumpOptions(pod.pid)
	enough := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	options.Hooks.Freeze = func(ctx context.Context) error {
		must(t, unix.Kill(pod.pid, unix.SIGSTOP))
		awaitState(t, pod.pid, 'T')
		return w.source.freezer.Freeze(ctx)
	}
	options.Hooks.Block = func() error {
		t.Error("CRIU has seized all processes: the test proves nothing")
		return w.source.block()
	}
	d, err := e.PrepareDump(t.Context(), options)
	must(t, err)
	attached := make(chan struct{})
	go func() {
		defer close(attached)
		for ctx.Err() == nil {
			if tracer, err := statusNumber(pod.pid, "TracerPid"); err != nil || tracer != 0 {
				break
			}
		}
		cancel(enough)
	}()
	if _, err := d.Run(ctx); !errors.Is(err, enough) {
		t.Errorf("Run returned %v, want the context's cause", err)
	}
	<-attached
	must(t, unix.Kill(pod.pid, unix.SIGCONT))
	unharmed(t, c, was)
}
