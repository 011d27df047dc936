package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// RestoreHooks are what the caller does at the right moment of a restore.
type RestoreHooks struct {
	// JoinCgroup puts process pid, which is CRIU, into the pod's cgroups.
	// Everything restored is born there. It is called by PrepareRestore.
	JoinCgroup func(pid int) error
	// Adopt writes down that pid is the pod's init, so that whoever comes after
	// this process finds it. Run calls it as soon as init exists, in a
	// goroutine of its own so that nothing waits for a disk, and fails if it
	// fails: at the hold it has been done. Nil means nothing is written.
	Adopt func(pid int) error
	// Release is called by Commit when everything but the last step is done:
	// what the pod needs when it runs. Nobody else may hear of it yet, for CRIU
	// may still die. If it fails the pod runs nevertheless, for there is no way
	// back, and Commit returns the error.
	Release func() error
}

// RestoreOptions say what to restore and where.
type RestoreOptions struct {
	// ImagesDir holds the image. It may be filled until Run is called.
	// WorkDir receives CRIU's log. Both must exist.
	ImagesDir, WorkDir string
	// Root is the pod's root file system: a mount point.
	Root string
	// NetNS is the path of the pod's network namespace, which must have the
	// addresses and routes of the pod, its packets blocked in both
	// directions, and loopback up.
	NetNS string
	// ExternalMounts finds the keys of DumpOptions.ExternalMounts: from the
	// key to a path on this host.
	ExternalMounts map[string]string
	// Lazy gets the userfaultfd of each process, by its number in the pod, as it
	// is made, and owns it from then on. All mappings with memory that
	// DumpOptions.LeaveOut named are registered with it (UFFDIO_REGISTER, mode
	// missing) by the time of the hold, when Lazy has been called for every process;
	// if CRIU registers them, all other private anonymous memory is, too, that is
	// neither locked nor of huge pages. What LeaveOut named is missing there; what
	// else is missing was not there at the source. Processes may wait for pages from
	// Lazy on, already before the hold. The pages must have come by ReceivePages. Nil restores
	// complete images only, without userfaultfd.
	Lazy func(pid int, uffd *os.File) error
	// Images is what has taken the images, if that was done since PrepareRestore; nil
	// has them read from ImagesDir.
	Images *ImageStore
	// Policy is what the images may make at most. Nil means that they come
	// from where nobody else could write.
	Policy *Policy
	Hooks  RestoreHooks
	// Log overrides the engine's.
	Log *slog.Logger
}

// Restore is one restore. Run, then Commit or Abort; without Run only Abort.
type Restore struct {
	engine  *Engine
	log     *slog.Logger
	options RestoreOptions
	op      *operation
	worker  *worker
	// lazy is where CRIU's userfaultfds come in, nil without Lazy; inPlace those of
	// the library, if they are used.
	lazy    *lazyPages
	inPlace *inPlace
	// mayBeInPlace says that they can be.
	mayBeInPlace bool
	// asked says that CRIU waits for the images, and asLazy whether it was told to
	// register memory.
	asked, asLazy bool
	// refused is what Lazy failed with, known after release.
	refused error
	// verified is what Verify found.
	verify   sync.Once
	verified error

	mu    sync.Mutex
	state restoreState
	// requested is true once CRIU was told to restore.
	requested bool
	// pid is the restored init, a child of this process, or 0.
	pid    int
	initFD *os.File
	// adopting is the call of Hooks.Adopt, whose error is adoptErr.
	adopting sync.WaitGroup
	adoptErr error
}

type restoreState int

const (
	restorePrepared restoreState = iota
	restoreHeld
	restoreRunning
	restoreOver
)

// PrepareRestore starts CRIU for a restore, inside the pod's network
// namespace and cgroups, so that Run can begin at once when the image is
// complete.
func (e *Engine) PrepareRestore(ctx context.Context, options RestoreOptions) (*Restore, error) {
	r := &Restore{engine: e, options: options, log: options.Log}
	if r.log == nil {
		r.log = e.log
	}
	if err := r.prepare(ctx); err != nil {
		r.release()
		return nil, fmt.Errorf("preparing the restore: %w", err)
	}
	return r, nil
}

func (r *Restore) prepare(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if r.options.Hooks.JoinCgroup == nil || r.options.Hooks.Release == nil {
		return errors.New("a hook is missing")
	}
	var err error
	if r.op, err = openOperation(r.options.ImagesDir, r.options.WorkDir); err != nil {
		return err
	}
	if err := removeUserfaultSocket(r.options.ImagesDir); err != nil {
		return err
	}
	if r.options.Lazy != nil {
		r.mayBeInPlace = r.engine.canRestoreInPlace()
		if r.lazy, err = listenLazy(r.op.work, r.options.Lazy); err != nil {
			return err
		}
	}
	return r.askEarly(ctx)
}

// startCRIU starts it in the pod's network namespace and cgroups.
func (r *Restore) startCRIU(gated bool) error {
	output, err := r.op.output()
	if err != nil {
		return err
	}
	defer output.Close()
	w, err := r.engine.startWorker(workerOptions{netNS: r.options.NetNS, output: output, userfault: r.options.Lazy != nil, gated: gated, log: r.log})
	if err != nil {
		return err
	}
	r.worker = w
	if err := r.options.Hooks.JoinCgroup(r.worker.pid()); err != nil {
		return fmt.Errorf("putting CRIU into the pod's cgroup: %w", err)
	}
	return resetOOMScore(r.worker.pid())
}

// resetOOMScore gives CRIU the ordinary oom_score_adj of proc(5). CRIU restores
// that of a process only if it is not 0; all others keep what they inherit,
// which would be podd's own, and that may keep podd alive at the pods' cost.
func resetOOMScore(pid int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("0"), 0); err != nil {
		return fmt.Errorf("resetting CRIU's OOM score: %w", err)
	}
	return nil
}

func (r *Restore) release() {
	r.options.Images.images() // decodes nothing any more
	if r.worker != nil {
		r.worker.stop()
	}
	if r.inPlace != nil {
		refused, err := r.inPlace.close()
		if err != nil {
			r.log.Warn("closing the way of userfaultfds failed", "error", err)
		}
		r.refused, r.inPlace = refused, nil
	}
	if r.lazy != nil {
		refused, err := r.lazy.close()
		if err != nil {
			r.log.Warn("closing the way of userfaultfds failed", "error", err)
		}
		if refused != nil {
			r.refused = refused
		}
		r.lazy = nil
	}
	if r.op != nil {
		if err := r.op.close(); err != nil {
			r.log.Warn("closing image directories failed", "error", err)
		}
		r.op = nil
	}
	if r.initFD != nil {
		r.initFD.Close()
		r.initFD = nil
	}
}

// Exited is closed when CRIU has ended. During a hold that means that
// something killed it: only Abort is possible then.
func (r *Restore) Exited() <-chan struct{} { return r.worker.exited }

// Run restores the pod and returns at the hold with the pid of its init, as
// this process sees it: everything is in place, adopted, no process of the pod
// has run, and no packet was sent. Init is a child of this process. On an error, which
// ctx may cause at any time, nothing is left and the Restore is over. The
// error contains a *CRIUError if CRIU was the one to fail.
func (r *Restore) Run(ctx context.Context) (pid int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != restorePrepared {
		return 0, fmt.Errorf("running the restore: %w", ErrState)
	}
	if err := r.run(ctx); err != nil {
		return 0, fmt.Errorf("restoring the pod: %w", r.fail(err))
	}
	r.state = restoreHeld
	return r.pid, nil
}

// Verify compares the images, which must be complete, with the policy. Run does
// it if it has not been done; before that it can go on beside something else.
func (r *Restore) Verify() error {
	r.verify.Do(func() {
		if r.options.Policy != nil {
			begin := time.Now()
			r.verified = r.options.Policy.verify(r.options.ImagesDir, r.options.Images.images())
			r.log.Debug("images are verified", "duration", time.Since(begin), "error", r.verified)
		}
	})
	return r.verified
}

func (r *Restore) run(ctx context.Context) error {
	if err := r.Verify(); err != nil {
		return err
	}
	if err := rearmTimers(r.options.ImagesDir); err != nil {
		return err
	}
	lazy, err := r.fillLater()
	if err != nil {
		return err
	}
	started := time.Now()
	if err := r.letBegin(lazy); err != nil {
		return err
	}
	for {
		m, err := r.receive(ctx)
		if err != nil {
			return err
		}
		switch m.notification() {
		case "":
			if pid := int(m.GetRestore().GetPid()); pid > 0 && r.pid == 0 {
				r.pid = pid
			}
			return errCRIUFailed
		case "setup-namespaces":
			if err := r.adopt(int(m.GetNotify().GetPid())); err != nil {
				return err
			}
		case "post-restore":
			r.log.Debug("pod is restored and held", "restore", time.Since(started), "pid", r.pid)
			r.adopting.Wait()
			if r.adoptErr != nil {
				return r.adoptErr
			}
			return r.registered(ctx)
		}
		if err := r.worker.answer(); err != nil {
			return err
		}
	}
}

// fillLater has memory registered that Lazy fills in, if there is one: here at the
// hold, or else, if it returns true, by CRIU.
func (r *Restore) fillLater() (byCRIU bool, err error) {
	if r.lazy == nil {
		return false, checkComplete(r.options.ImagesDir)
	}
	left, known, err := readLeftOut(r.options.ImagesDir)
	if err != nil {
		return false, err
	}
	if known && r.mayBeInPlace {
		r.inPlace, err = startInPlace(r.op.images, left, r.options.Lazy)
		return false, err
	}
	processes, err := countProcesses(r.options.ImagesDir)
	if err != nil {
		return false, err
	}
	r.lazy.start(processes)
	return true, nil
}

// registered returns at the hold, when all memory is registered that Lazy fills in.
func (r *Restore) registered(ctx context.Context) error {
	switch {
	case r.inPlace != nil:
		begin := time.Now()
		err := r.inPlace.register(ctx, r.worker.exited)
		r.log.Debug("memory is registered", "duration", time.Since(begin), "error", err)
		if err != nil && ctx.Err() == nil && !errors.Is(err, errWorkerGone) && r.inPlace.refused == nil {
			r.engine.outOfPlace.Store(true)
			r.log.Error("from now on CRIU registers memory that is filled in, which takes longer", "error", err)
		}
		return err
	case r.lazy != nil:
		return r.lazy.wait(ctx, r.worker.exited)
	}
	return nil
}

// receive is worker.receive, but drops the terminal masters that CRIU gives
// away: the other end of such a terminal was gone before the dump, so its
// processes shall see a hang-up again.
//
// As long as init is unknown, ctx has no effect: init may already be born, and
// would remain our zombie. That is a matter of milliseconds.
func (r *Restore) receive(ctx context.Context) (message, error) {
	if r.pid == 0 {
		ctx = context.WithoutCancel(ctx)
	}
	m, err := r.worker.receive(ctx)
	if m.file != nil {
		m.file.Close()
	}
	return m, err
}

// adopt takes note of the restored init.
func (r *Restore) adopt(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("finding the restored process %d: %w", pid, err)
	}
	r.pid, r.initFD = pid, os.NewFile(uintptr(fd), "pidfd")
	if r.options.Hooks.Adopt != nil {
		r.adopting.Go(func() { r.adoptErr = r.options.Hooks.Adopt(pid) })
	}
	return nil
}
