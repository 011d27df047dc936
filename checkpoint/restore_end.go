package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// fail undoes an unfinished or held restore after err and returns it, in
// CRIU's own words if CRIU is to blame.
func (r *Restore) fail(err error) error {
	undo := r.rollBack()
	return errors.Join(r.refused, inCRIUsWords(err, "restore", r.options.WorkDir, restoreLog), undo)
}

// rollBack ends CRIU, which kills what it restored, and then what CRIU could
// not kill because it was killed itself.
func (r *Restore) rollBack() error {
	r.state = restoreOver
	r.adopting.Wait()
	timeout := stopTimeout
	if r.options.Lazy != nil {
		timeout = lazyStopTimeout
	}
	r.worker.stopWithin(timeout)
	var err error
	if r.requested && r.pid == 0 {
		// CRIU was killed before it told who init is.
		r.pid, err = childIn(r.options.NetNS)
	}
	if err == nil && r.pid != 0 {
		err = r.kill()
	}
	r.release()
	if err != nil {
		return fmt.Errorf("killing the restored pod: %w", err)
	}
	return nil
}

// kill ends the restored pod and reaps its init. When that is possible all
// other processes of the pid namespace are gone.
func (r *Restore) kill() error {
	// Not reaped yet, so the number is still init's.
	if err := unix.Kill(r.pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	if r.initFD != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		if err := procfs.WaitExit(ctx, int(r.initFD.Fd())); err != nil {
			return fmt.Errorf("process %d does not end: %w", r.pid, err)
		}
	}
	_, err := reap(r.pid)
	if errors.Is(err, unix.ECHILD) {
		// A reaper of all children was faster, or it never was ours.
		return nil
	}
	return err
}

// reap waits for a child of this process.
func reap(pid int) (syscall.WaitStatus, error) {
	for {
		var status unix.WaitStatus
		_, err := unix.Wait4(pid, &status, 0, nil)
		if !errors.Is(err, unix.EINTR) {
			return syscall.WaitStatus(status), err
		}
	}
}

// childIn finds a child of this process in the network namespace at path, or
// returns 0.
func childIn(path string) (int, error) {
	var want unix.Stat_t
	if err := unix.Stat(path, &want); err != nil {
		return 0, fmt.Errorf("reading network namespace: %w", err)
	}
	table, err := procfs.Table()
	if err != nil {
		return 0, err
	}
	for pid, stat := range table {
		if stat.Parent != os.Getpid() {
			continue
		}
		var got unix.Stat_t
		if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &got); err != nil {
			continue // it ended
		}
		if got.Ino == want.Ino && got.Dev == want.Dev {
			return pid, nil
		}
	}
	return 0, nil
}

// Abort kills everything that was restored. No packet is sent: the sockets are
// still in repair mode. It returns when nothing is left. Abort of a Restore
// that was not run only ends CRIU; of one that is over or running, it does
// nothing.
func (r *Restore) Abort() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state == restoreOver || r.state == restoreRunning {
		return nil
	}
	if err := r.rollBack(); err != nil {
		return fmt.Errorf("aborting the restore: %w", err)
	}
	return nil
}

// Commit lets the pod run, and returns when it does. In between, when its
// sockets have left repair mode and its processes are about to go on, it calls
// Release. Once it is under way there is no way back, so ctx is looked at only
// before. An error after that leaves a pod that runs, if only Release failed
// (Wait tells), or none at all: the image can then be restored once more.
func (r *Restore) Commit(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state != restoreHeld {
		return fmt.Errorf("committing the restore: %w", ErrState)
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("committing the restore: %w", err)
	}
	releaseErr, err := r.resume()
	if err != nil {
		return fmt.Errorf("committing the restore: %w", r.fail(err))
	}
	r.state = restoreRunning
	return releaseErr
}

// Close waits until CRIU has ended, which after Commit takes tens of
// milliseconds that nobody else should wait for. After Abort or a failure
// there is nothing left to close. The pod is not touched.
func (r *Restore) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.state == restoreRunning {
		r.release()
	}
}

// resume answers the hold and what follows it.
func (r *Restore) resume() (releaseErr, err error) {
	ctx := context.Background()
	for {
		if err := r.worker.answer(); err != nil {
			return releaseErr, err
		}
		m, err := r.receive(ctx)
		if err != nil {
			return releaseErr, err
		}
		switch m.notification() {
		case "":
			if !m.GetSuccess() {
				return releaseErr, errCRIUFailed
			}
			return releaseErr, nil
		case "pre-resume":
			if err := r.options.Hooks.Release(); err != nil {
				releaseErr = fmt.Errorf("releasing the pod's network: %w", err)
			}
		case "post-resume":
			// It runs. CRIU may die now without harm, and takes its time for it: some
			// 30 ms for a desktop, which that needs itself after so long.
			r.worker.yield()
			if err := r.worker.answer(); err != nil {
				r.log.Warn("CRIU died after the restore", "error", err)
			}
			return releaseErr, nil
		}
	}
}

// Wait waits until the pod's init ends, reaps it and returns its status. It
// may be called once, after Commit, and only if nobody else in this process
// waits for any child. After a restart of this process init is not a child of
// the new one; a pidfd tells when it ends.
func (r *Restore) Wait() (syscall.WaitStatus, error) {
	r.mu.Lock()
	pid, state := r.pid, r.state
	r.mu.Unlock()
	if state != restoreRunning {
		return 0, fmt.Errorf("waiting for the pod: %w", ErrState)
	}
	status, err := reap(pid)
	if err != nil {
		return 0, fmt.Errorf("waiting for the pod's init %d: %w", pid, err)
	}
	return status, nil
}
