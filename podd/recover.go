package podd

import (
	"context"
	"errors"
	"fmt"
	"slices"
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

// recover brings this host to what the directory says: pods that live are
// taken over, what ended is recorded, what is nobody's is removed.
func (d *Daemon) recover(ctx context.Context) error {
	fault.Watch(d.RunDir)
	view, err := d.dir.View(ctx)
	if err != nil {
		return err
	}
	if err := d.abortMoves(ctx, view); err != nil {
		return err
	}
	// Aborting has changed the records.
	if view, err = d.dir.View(ctx); err != nil {
		return err
	}
	wanted := map[incarnation]bool{}
	var failed []*pod.Pod
	for _, record := range view.Pods {
		if record.Binding.Host != d.Name {
			continue
		}
		epoch := record.Binding.Epoch
		wanted[incarnation{record.Name(), epoch}] = true
		if err := d.recoverPod(ctx, view, record); err != nil {
			d.log.Error("taking over a pod failed; it is tried again", "pod", record.Name(), "error", err)
			failed = append(failed, record)
		}
	}
	if err := d.removeLeftovers(ctx, wanted); err != nil {
		return err
	}
	if err := d.removeImages(view, failed); err != nil {
		return err
	}
	if len(failed) > 0 {
		d.background(func(ctx context.Context) { d.recoverLater(ctx, failed) })
	}
	return d.finishMoves(ctx, view)
}

// recoverRetry is the pause between attempts to take over a pod.
const recoverRetry = 2 * time.Second

// recoverLater goes on taking over pods, as the proxy may be missing, or memory.
func (d *Daemon) recoverLater(ctx context.Context, pods []*pod.Pod) {
	for len(pods) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-time.After(recoverRetry):
		}
		view, err := d.dir.View(ctx)
		if err != nil {
			d.log.Warn("taking over pods has to wait", "error", err)
			continue
		}
		pods = slices.DeleteFunc(pods, func(old *pod.Pod) bool {
			record := view.Pods[old.Name()]
			if record == nil || record.Binding != old.Binding {
				return true
			}
			if _, err := d.localPod(old.Name()); err == nil {
				return true
			}
			if err := d.recoverPod(ctx, view, record); err != nil {
				d.log.Error("taking over a pod failed again", "pod", record.Name(), "error", err)
				return false
			}
			return true
		})
	}
}

// incarnation names one incarnation of a pod.
type incarnation struct {
	name  string
	epoch pod.Epoch
}

// abortMoves ends the moves this host was part of when it stopped: nothing of
// them goes on by itself.
func (d *Daemon) abortMoves(ctx context.Context, view *directory.View) error {
	for _, move := range view.Moves {
		if move.State == pod.MoveRunning && (move.Source == d.Name || move.Target == d.Name) {
			d.log.Warn("undoing a move that a restart interrupted", "pod", move.Pod, "move", move.ID)
			err := d.dir.AbortMove(ctx, move.ID, move.Stage, fmt.Errorf("host %s: %w", d.Name, errRestarted))
			if err != nil && !errors.Is(err, directory.ErrCommitted) {
				return err
			}
		}
	}
	return nil
}

// finishMoves closes the moves from here that were committed when this host
// stopped: only the clean-up was left, and it has been done. What they measured
// is lost.
func (d *Daemon) finishMoves(ctx context.Context, view *directory.View) error {
	for _, move := range view.Moves {
		if move.State == pod.MoveCommitted && move.Source == d.Name {
			if err := d.dir.FinishMove(ctx, move.ID, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// recoverPod takes over one pod that the directory says is here.
func (d *Daemon) recoverPod(ctx context.Context, view *directory.View, record *pod.Pod) error {
	name, epoch := record.Name(), record.Binding.Epoch
	log := d.log.With("pod", name)
	switch record.Phase {
	case pod.PhaseCreating:
		log.Warn("removing a pod whose creation a restart interrupted")
		return d.remove(ctx, name, epoch)
	case pod.PhaseStopped:
		if record.Spec.RemoveOnExit {
			return d.remove(ctx, name, epoch)
		}
		return nil
	case pod.PhaseFailed:
		return nil
	}
	container, err := d.runtime.Load(name, epoch)
	if err != nil && !errors.Is(err, pod.ErrNotFound) {
		return err
	}
	if err != nil {
		return d.recordEnd(ctx, record, nil)
	}
	images, err := d.unusedImages(view, record)
	if err != nil {
		return err
	}
	if images != "" {
		// CRIU, which held the restored pod, ends when podd does and takes the
		// pod along, unless that was let go already.
		if err := awaitCRIU(ctx, container.FreezerDir()); err != nil {
			return err
		}
		if err := awaitEmpty(ctx, container.FreezerDir()); err != nil {
			return err
		}
	}
	pid, running := container.PID()
	if !running && images != "" {
		log.Warn("restoring a pod whose move here was committed when podd stopped")
		return d.restoreCommitted(ctx, container, record.Binding, images)
	}
	if !running {
		return d.recordEnd(ctx, record, container)
	}
	if err := d.unfreeze(ctx, container, pid); err != nil {
		return err
	}
	d.track(name, epoch, container)
	log.Info("pod found again", "pid", pid)
	return nil
}

// unfreeze undoes what a dump that was interrupted by podd's end has left: the
// pod stays frozen and its network blocked, so that nothing is lost meanwhile.
func (d *Daemon) unfreeze(ctx context.Context, container *namespace.Container, pid int) error {
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
	code, known := 0, false
	if container != nil {
		var err error
		code, err = container.Wait(ctx)
		known = err == nil && code != namespace.ExitKilled
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
		p.Phase, p.ExitCode, p.StoppedAt = pod.PhaseStopped, code, time.Now().UTC()
		if !known {
			p.Phase, p.Reason = pod.PhaseFailed, fmt.Sprintf("host %s lost its processes: the machine was restarted, or they were killed while podd was down", d.Name)
		}
		return nil
	})
}

// removeLeftovers removes every incarnation on this host that is not wanted:
// pods that moved away, targets of moves that failed.
func (d *Daemon) removeLeftovers(ctx context.Context, wanted map[incarnation]bool) error {
	keep := func(name string, epoch pod.Epoch) bool { return wanted[incarnation{name, epoch}] }
	if err := d.runtime.Cleanup(ctx, keep); err != nil {
		return err
	}
	network, err := d.net(ctx)
	if errors.Is(err, errNoProxy) {
		d.log.Info("no proxy has joined yet", "error", err)
		return nil
	}
	if err != nil {
		return err
	}
	paths := map[string]bool{}
	for i := range wanted {
		paths[d.netnsPath(i.name, i.epoch)] = true
	}
	return network.Reconcile(d.netnsDir(), paths)
}
