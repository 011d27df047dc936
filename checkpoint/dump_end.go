package checkpoint

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// fail undoes an unfinished or held dump after err and returns it, with the
// failures of the undoing, and in CRIU's own words if CRIU is to blame.
func (d *Dump) fail(err error) error {
	undo := d.rollBack()
	return errors.Join(inCRIUsWords(err, "dump", d.options.WorkDir, dumpLog), undo)
}

// rollBack makes CRIU let go of the pod and the pod run.
func (d *Dump) rollBack() error {
	if d.pages != nil {
		d.pages.Close()
	}
	var errs []error
	if d.seizing {
		// CRIU may be waiting for a process that can't move, see
		// stoppedInRefrigerator. It has not begun to look at anything.
		if err := d.options.Hooks.Thaw(); err != nil {
			errs = append(errs, fmt.Errorf("thawing the pod: %w", err))
		}
	}
	d.worker.stop()
	if d.froze && d.worker.killed() {
		// Nobody switched repair mode off.
		d.log.Warn("CRIU was killed, recovering the pod's sockets")
		errs = append(errs, d.recover())
	}
	if d.blocked {
		if err := d.options.Hooks.Unblock(); err != nil {
			errs = append(errs, fmt.Errorf("unblocking the pod's network: %w", err))
		}
	}
	if d.froze {
		if err := d.options.Hooks.Thaw(); err != nil {
			errs = append(errs, fmt.Errorf("thawing the pod: %w", err))
		}
	}
	d.state = dumpOver
	d.release()
	return errors.Join(errs...)
}

// recover mends the sockets of the pod while it is frozen.
func (d *Dump) recover() error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := d.options.Hooks.Freeze(ctx); err != nil {
		return fmt.Errorf("freezing the pod: %w", err)
	}
	n, err := Recover(d.options.PID)
	d.log.Info("sockets recovered", "sockets", n)
	return err
}

// Abort gives the pod back: it resumes with its connections, and the network
// is unblocked. It returns when that is done. Abort of a Dump that was not run
// only ends CRIU; of one that is over, it does nothing.
func (d *Dump) Abort() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state == dumpOver {
		return nil
	}
	if err := d.rollBack(); err != nil {
		return fmt.Errorf("aborting the dump: %w", err)
	}
	return nil
}

// Commit ends the pod here, for it goes on elsewhere. Its sockets are closed
// in repair mode, so no peer hears of it. It returns when the pod's init is
// dead, and with that everything in its pid namespace; the caller, being its
// parent, has to reap it. Commit also works when CRIU died during the hold.
//
// There is no way back: if ctx ends the wait, the pod dies nevertheless.
func (d *Dump) Commit(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state != dumpHeld {
		return fmt.Errorf("committing the dump: %w", ErrState)
	}
	d.state = dumpOver
	defer d.release()
	// A signal that is pending before the cgroup is thawed makes sure that
	// no process runs again, whatever becomes of CRIU.
	if err := unix.PidfdSendSignal(int(d.initFD.Fd()), unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("committing the dump: killing the pod: %w", err)
	}
	if err := d.worker.answer(); err != nil {
		d.log.Warn("CRIU died during the hold", "error", err)
	}
	// Frozen tasks of a version 1 cgroup die only when they are thawed,
	// and CRIU waits for it.
	if err := d.options.Hooks.Thaw(); err != nil {
		return fmt.Errorf("committing the dump: thawing the pod: %w", err)
	}
	if err := procfs.WaitExit(ctx, int(d.initFD.Fd())); err != nil {
		return fmt.Errorf("committing the dump: waiting for the pod's end: %w", err)
	}
	return nil
}
