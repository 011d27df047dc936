package podd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"podd/checkpoint"
	"podd/directory"
	"podd/fault"
	"podd/namespace"
	"podd/pod"
)

// errRestarted is the cause recorded where a start of podd finds something
// half-done.
var errRestarted = errors.New("podd was restarted meanwhile")

// recover is the first look of the reconcile loop, before anything is served:
// moves that this host was part of are ended, and then the host is brought to
// what the directory says. What can't be put right yet does not keep podd from
// serving; the loop goes on trying.
func (d *Daemon) recover(ctx context.Context) error {
	fault.Watch(d.RunDir)
	view, err := d.dir.View(ctx)
	if err != nil {
		return err
	}
	if view, err = d.decideMoves(ctx, view); err != nil {
		return err
	}
	d.noteUnclosed(view)
	d.keepMemories(view)
	if err := d.tellMemories(view); err != nil {
		return err
	}
	again, err := d.reconcile(ctx, true)
	if err != nil {
		return err
	}
	d.background(func(ctx context.Context) { d.keepReconciled(ctx, again) })
	return nil
}

// incarnation names one incarnation of a pod.
type incarnation struct {
	name  string
	epoch pod.Epoch
}

// decideMoves aborts the moves this host was part of, and returns what the directory
// says then: the other side may have committed one of them since view was read.
func (d *Daemon) decideMoves(ctx context.Context, view *directory.View) (*directory.View, error) {
	if err := d.abortMoves(ctx, view); err != nil {
		return nil, err
	}
	return d.dir.View(ctx)
}

// abortMoves ends the moves this host was part of when it stopped: nothing of
// them goes on by itself.
func (d *Daemon) abortMoves(ctx context.Context, view *directory.View) error {
	for _, move := range view.Moves {
		open := move.State == pod.MoveQueued || move.State == pod.MoveRunning || move.Undoing()
		abort := d.dir.AbortMove
		if move.Source != d.Name {
			// Only the source gives the pod back.
			open, abort = move.State == pod.MoveRunning && move.Target == d.Name, d.dir.CancelMove
		}
		if open {
			d.log.Warn("undoing a move that a restart interrupted", "pod", move.Pod, "move", move.ID)
			err := abort(ctx, move.ID, move.Stage, fmt.Errorf("host %s: %w", d.Name, errRestarted))
			if err != nil && !errors.Is(err, directory.ErrCommitted) {
				return err
			}
		}
	}
	return nil
}

// recoverPod settles one pod that the directory says is here and that podd does
// not look after: it is taken over, restored, removed, or recorded as ended. The
// images from which it could be restored are removed then.
func (d *Daemon) recoverPod(ctx context.Context, record *pod.Pod) error {
	name, epoch := record.Name(), record.Binding.Epoch
	switch record.Phase {
	case pod.PhaseCreating:
		d.log.Warn("removing a pod whose creation was interrupted", "pod", name)
		return d.undoCreate(ctx, name, epoch)
	case pod.PhaseStopped:
		return d.remove(ctx, name, epoch)
	}
	if err := fault.At("target:recover-pod", nil); err != nil {
		return err
	}
	if err := d.recoverLive(ctx, record); err != nil {
		return err
	}
	images := d.imagesOf(targetImages, name, epoch)
	if there, err := exists(images); err != nil || !there {
		return err
	}
	return d.removeImages(ctx, images)
}

func (d *Daemon) recoverLive(ctx context.Context, record *pod.Pod) error {
	name, epoch := record.Name(), record.Binding.Epoch
	log := d.log.With("pod", name)
	container, err := d.runtime.Load(name, epoch)
	if errors.Is(err, pod.ErrNotFound) {
		return d.recordEnd(ctx, record, nil)
	}
	if err != nil {
		return err
	}
	if label := container.Config().Label; label != 0 && label != record.Binding.Label {
		log.Warn("removing another pod of the same name", "label", label)
		if err := d.removeRemains(ctx, name, epoch); err != nil {
			return err
		}
		return d.recordEnd(ctx, record, nil)
	}
	// What an earlier podd was about is over when its CRIU is: a dump is rolled
	// back, and leaves the pod frozen; a restored pod is killed, unless it was
	// let go already.
	if err := d.awaitStrays(ctx, container); err != nil {
		return err
	}
	images := d.imagesOf(targetImages, name, epoch)
	unused, err := exists(images)
	if err != nil {
		return err
	}
	if unused {
		if err := awaitEmpty(ctx, container.FreezerDir(), images); err != nil {
			return err
		}
	}
	if pid, running := container.PID(); running {
		pg, err := d.adoptPager(ctx, container)
		if err != nil {
			return err
		}
		// A pod that stands still because memory is missing is the pager's to thaw.
		if err := d.unfreeze(ctx, container, pid, pg != nil); err != nil {
			if pg != nil {
				pg.Close()
			}
			return err
		}
		p := d.track(name, epoch, container)
		log.Info("pod found again", "pid", pid)
		if pg != nil {
			d.fillIn(p, d.moveTo(ctx, container), d.memoryDir(container), pg)
		}
		return nil
	}
	_, ended, err := container.Exited()
	if err != nil {
		return err
	}
	if unused && !ended {
		log.Warn("restoring a pod whose move here was committed and that does not run")
		return d.restoreCommitted(ctx, container, record.Binding, images)
	}
	return d.recordEnd(ctx, record, container)
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// unfreeze undoes what a dump that was interrupted by podd's end has left: the
// pod stays frozen and its network blocked, so that nothing is lost meanwhile.
// No CRIU may be at work on it. With still its processes are left as they are.
func (d *Daemon) unfreeze(ctx context.Context, container *namespace.Container, pid int, still bool) error {
	if err := d.awaitStrays(ctx, container); err != nil {
		return err
	}
	network, err := d.net(ctx)
	if err != nil {
		return err
	}
	freezer, err := checkpoint.NewFreezer(container.FreezerDir())
	if err != nil {
		return err
	}
	frozen, err := freezer.Frozen()
	if err != nil {
		return err
	}
	frozen = frozen && !still
	if frozen {
		mended, err := checkpoint.Recover(pid)
		if err != nil {
			return err
		}
		d.log.Warn("thawing a pod that an interrupted move had frozen", "pod", container.Name(), "sockets", mended)
	}
	path := d.netnsPath(container.Name(), container.Epoch())
	blocked, err := network.Blocked(path)
	if err != nil {
		return err
	}
	if blocked {
		if err := network.Unblock(path); err != nil {
			return err
		}
	}
	if frozen {
		return freezer.Thaw()
	}
	return nil
}

// recordEnd records a pod that ended while podd was not there to see it.
// container is nil if not even its files are there.
func (d *Daemon) recordEnd(ctx context.Context, record *pod.Pod, container *namespace.Container) error {
	name, epoch := record.Name(), record.Binding.Epoch
	// It may have ended while its memory was arriving.
	if err := d.endPagerOf(ctx, d.imagesOf(memoryImages, name, epoch)); err != nil {
		return err
	}
	code, known := 0, false
	if container != nil {
		var err error
		if code, known, err = container.Exited(); err != nil {
			d.log.Warn("the exit status is unreadable", "pod", name, "error", err)
		}
		if err := container.Release(ctx); err != nil {
			return err
		}
	}
	if network, err := d.net(ctx); err != nil {
		return err
	} else if err := network.DeleteNamespace(d.netnsPath(name, epoch)); err != nil {
		return err
	}
	if record.Spec.RemoveOnExit {
		return d.remove(ctx, name, epoch)
	}
	return d.dir.UpdatePod(ctx, name, func(p *pod.Pod) error {
		if p.Binding != record.Binding {
			return fmt.Errorf("%w: a newer incarnation exists", pod.ErrConflict)
		}
		p.Phase, p.ExitCode, p.StoppedAt = pod.PhaseStopped, code, time.Now().UTC()
		if !known {
			p.Phase, p.Reason = pod.PhaseFailed, fmt.Sprintf("host %s lost its processes: the machine was restarted, or they were killed while podd was down", d.Name)
		}
		return nil
	})
}
