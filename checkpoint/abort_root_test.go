//go:build root

package checkpoint

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// onNotification is a log that calls f when CRIU notifies of name, before
// the notification is acted on.
func onNotification(name string, f func(criu int)) *slog.Logger {
	return slog.New(notificationHandler{name, f})
}

type notificationHandler struct {
	name string
	f    func(criu int)
}

func (notificationHandler) Enabled(context.Context, slog.Level) bool { return true }

func (h notificationHandler) Handle(_ context.Context, r slog.Record) error {
	criu, hit := 0, false
	r.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "criu":
			criu = int(a.Value.Int64())
		case "notification":
			hit = a.Value.String() == h.name
		}
		return true
	})
	if hit {
		h.f(criu)
	}
	return nil
}

func (h notificationHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h notificationHandler) WithGroup(string) slog.Handler      { return h }

// unharmed checks that the pod at the source is what it was and goes on.
func unharmed(t *testing.T, c *control, was podState) {
	t.Helper()
	is := c.ask(t)
	if is.digest != was.digest || is.ticks < was.ticks {
		t.Errorf("state was %+v, is %+v", was, is)
	}
	if later := c.ask(t); later.digest != was.digest {
		t.Errorf("state was %+v, is %+v", was, later)
	}
}

func TestAbort(t *testing.T) {
	for name, root := range cgroupRoots(t) {
		t.Run(name, func(t *testing.T) { testAbort(t, newWorldIn(t, root)) })
	}
}

func testAbort(t *testing.T, w *world) {
	e := openEngine(t)
	pod := w.source.start(t, 4)
	c := w.control(t)
	was := c.ask(t)
	s := w.stream(t)
	s.progress(t)

	m := begin(t, e, pod.pid, w.source, w.target)
	must(t, m.restore.Abort())
	w.target.empty(t)
	if err := unix.Kill(m.init, 0); err != unix.ESRCH {
		t.Errorf("the restored init is still there: %v", err)
	}
	must(t, m.dump.Abort())
	s.progress(t)
	unharmed(t, c, was)

	// And once more, to the end.
	w.source.clear(t)
	w.target.clear(t)
	m = begin(t, e, pod.pid, w.source, w.target)
	m.commit(t)
	s.finish(t)
	unharmed(t, c, was)
}

func TestAbortBeforeRun(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 1)
	c := w.control(t)
	d, err := e.PrepareDump(t.Context(), w.source.dumpOptions(pod.pid))
	must(t, err)
	r, err := e.PrepareRestore(t.Context(), w.target.restoreOptions())
	must(t, err)
	if err := d.Commit(t.Context()); !errors.Is(err, ErrState) {
		t.Errorf("Commit without a hold: %v", err)
	}
	if err := r.Commit(t.Context()); !errors.Is(err, ErrState) {
		t.Errorf("Commit without a hold: %v", err)
	}
	must(t, d.Abort())
	must(t, r.Abort())
	must(t, d.Abort())
	must(t, r.Abort())
	w.target.empty(t)
	if _, err := d.Run(t.Context()); !errors.Is(err, ErrState) {
		t.Errorf("Run after Abort: %v", err)
	}
	unharmed(t, c, c.ask(t))
}

// TestDumpCancelled cancels the context at every step of a dump.
func TestDumpCancelled(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 4)
	c := w.control(t)
	was := c.ask(t)
	s := w.stream(t)
	for _, step := range []string{"start", "pre-dump", "query-ext-files", "pages", "post-dump"} {
		t.Run(step, func(t *testing.T) {
			s.progress(t)
			ctx, cancel := context.WithCancelCause(t.Context())
			reason := errors.New("stopped at " + step)
			o := w.source.dumpOptions(pod.pid)
			o.ImagesDir = t.TempDir()
			o.Log = onNotification(step, func(int) { cancel(reason) })
			o.Pages = io.Discard
			if step == "pages" {
				o.Pages = writerFunc(func(b []byte) (int, error) { cancel(reason); return len(b), nil })
			}
			d, err := e.PrepareDump(ctx, o)
			must(t, err)
			if step == "start" {
				cancel(reason)
			}
			t.Cleanup(func() { must(t, d.Abort()) })
			_, err = d.Run(ctx)
			if step == "post-dump" && err == nil {
				// Too late for Run to notice, if freezing did not wait.
				must(t, d.Abort())
			} else if !errors.Is(err, reason) && !errors.Is(err, context.Canceled) {
				t.Errorf("error is %v", err)
			}
			s.progress(t)
			unharmed(t, c, was)
		})
	}
	s.finish(t)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestDumpHookFails makes each hook fail, and the page stream.
func TestDumpHookFails(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 4)
	c := w.control(t)
	was := c.ask(t)
	s := w.stream(t)
	reason := errors.New("no")
	for name, spoil := range map[string]func(o *DumpOptions){
		"ready": func(o *DumpOptions) {
			o.Hooks.Ready = func(context.Context) error { return reason }
			o.Hooks.Freeze = func(context.Context) error { return errors.New("it is not ready") }
		},
		"freeze": func(o *DumpOptions) {
			o.Hooks.Freeze = func(context.Context) error { return reason }
		},
		"freeze at hold": func(o *DumpOptions) {
			n := 0
			o.Hooks.Freeze = func(ctx context.Context) error {
				if n++; n > 1 {
					return reason
				}
				return w.source.freezer.Freeze(ctx)
			}
		},
		"block": func(o *DumpOptions) { o.Hooks.Block = func() error { return reason } },
		"pages": func(o *DumpOptions) {
			o.Pages = writerFunc(func([]byte) (int, error) { return 0, reason })
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := w.source.dumpOptions(pod.pid)
			o.ImagesDir = t.TempDir()
			o.Pages = io.Discard
			spoil(&o)
			d, err := e.PrepareDump(t.Context(), o)
			must(t, err)
			t.Cleanup(func() { must(t, d.Abort()) })
			if _, err := d.Run(t.Context()); !errors.Is(err, reason) {
				t.Errorf("error is %v", err)
			}
			s.progress(t)
			unharmed(t, c, was)
		})
	}
	s.finish(t)
}

// TestRestoreInterrupted cancels the context and kills CRIU at every step of
// a restore, of complete images and of those to be filled later. Nothing may be
// left, and the source goes on.
func TestRestoreInterrupted(t *testing.T) {
	t.Run("complete", func(t *testing.T) { testRestoreInterrupted(t, false) })
	t.Run("lazy", func(t *testing.T) { testRestoreInterrupted(t, true) })
}

func testRestoreInterrupted(t *testing.T, lazy bool) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 4)
	c := w.control(t)
	was := c.ask(t)
	s := w.stream(t)
	o := w.source.dumpOptions(pod.pid)
	d, err := e.PrepareDump(t.Context(), o)
	must(t, err)
	t.Cleanup(func() { must(t, d.Abort()) })
	_, err = d.Run(t.Context())
	must(t, err)
	must(t, w.target.block())
	for _, step := range []string{"pre-restore", "setup-namespaces", "post-setup-namespaces", "post-restore"} {
		for _, how := range []string{"cancel", "kill"} {
			t.Run(how+" "+step, func(t *testing.T) {
				ctx, cancel := context.WithCancelCause(t.Context())
				reason := errors.New("stopped")
				o := w.target.restoreOptions()
				o.ImagesDir = w.source.images
				if lazy {
					o.Lazy = newCarrier(t).lazy
				}
				o.Log = onNotification(step, func(criu int) {
					if how == "cancel" {
						cancel(reason)
					} else {
						must(t, unix.Kill(criu, unix.SIGKILL))
					}
				})
				r, err := e.PrepareRestore(t.Context(), o)
				must(t, err)
				_, err = r.Run(ctx)
				if step == "post-restore" && (!lazy || err == nil) {
					// The hold is reached; CRIU may be gone or not.
					must(t, err)
					if how == "cancel" {
						if err := r.Commit(ctx); err == nil {
							t.Error("committed although cancelled")
						}
						must(t, r.Abort())
					} else if err := r.Commit(t.Context()); err == nil {
						t.Error("committed without CRIU")
					}
				} else if err == nil {
					t.Error("no error")
				} else if how == "cancel" && !errors.Is(err, reason) {
					t.Errorf("error is %v", err)
				}
				w.target.empty(t)
			})
		}
	}
	must(t, d.Abort())
	s.finish(t)
	unharmed(t, c, was)
}

// TestReleaseFails lets the pod run although its network is still blocked.
func TestReleaseFails(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 1)
	c := w.control(t)
	was := c.ask(t)
	o := w.source.dumpOptions(pod.pid)
	d, err := e.PrepareDump(t.Context(), o)
	must(t, err)
	_, err = d.Run(t.Context())
	must(t, err)
	must(t, w.target.block())
	ro := w.target.restoreOptions()
	ro.ImagesDir = o.ImagesDir
	reason := errors.New("no")
	ro.Hooks.Release = func() error { return reason }
	r, err := e.PrepareRestore(t.Context(), ro)
	must(t, err)
	_, err = r.Run(t.Context())
	must(t, err)
	defer r.Close()
	if err := r.Commit(t.Context()); !errors.Is(err, reason) {
		t.Errorf("Commit: %v", err)
	}
	must(t, d.Commit(t.Context()))
	must(t, w.target.unblock())
	unharmed(t, c, was)
	must(t, unix.Kill(r.pid, unix.SIGKILL))
	status, err := r.Wait()
	must(t, err)
	if status.Signal() != unix.SIGKILL {
		t.Errorf("status %v", status)
	}
}

// TestErrorsAreQuoted makes CRIU fail on both sides and looks for its words.
func TestErrorsAreQuoted(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 1)
	c := w.control(t)
	was := c.ask(t)

	o := w.source.dumpOptions(pod.pid)
	o.ExternalMounts = nil // now /tmp is a mount that CRIU does not know
	d, err := e.PrepareDump(t.Context(), o)
	must(t, err)
	_, err = d.Run(t.Context())
	wantCRIUError(t, err, "dump", "mount")
	unharmed(t, c, was)

	if _, err := e.PrepareDump(t.Context(), DumpOptions{PID: 1 << 30}); err == nil {
		t.Error("no error for a process that does not exist")
	}

	w.source.clear(t)
	d, err = e.PrepareDump(t.Context(), w.source.dumpOptions(pod.pid))
	must(t, err)
	defer d.Abort()
	_, err = d.Run(t.Context())
	must(t, err)
	must(t, os.Remove(filepath.Join(w.target.root, "bin/program")))
	ro := w.target.restoreOptions()
	ro.ImagesDir = o.ImagesDir
	r, err := e.PrepareRestore(t.Context(), ro)
	must(t, err)
	_, err = r.Run(t.Context())
	wantCRIUError(t, err, "restore", "bin/program")
	w.target.empty(t)
	must(t, d.Abort())
	unharmed(t, c, was)
}

func wantCRIUError(t *testing.T, err error, op, text string) {
	t.Helper()
	var criu *CRIUError
	if !errors.As(err, &criu) || criu.Op != op || len(criu.Lines) == 0 || !strings.Contains(err.Error(), text) {
		t.Errorf("error is %v", err)
	}
}
