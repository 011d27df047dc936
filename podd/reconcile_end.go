package podd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"podd/checkpoint"
	"podd/directory"
	"podd/namespace"
	"podd/pod"
	"podd/sharedmem"
)

// supersede ends a copy that is another host's, or nobody's: without a word to
// its peers, and so that nothing is recorded of its end. p.mu is held.
func (d *Daemon) supersede(ctx context.Context, p *localPod) error {
	if err := d.removeRemains(ctx, p.name, p.epoch); err != nil {
		return err
	}
	p.left = true
	d.forget(p)
	close(p.gone)
	return nil
}

// removeRemains removes what is left of an incarnation, and the CRIU that may be
// working on it still.
func (d *Daemon) removeRemains(ctx context.Context, name string, epoch pod.Epoch) error {
	path := d.netnsPath(name, epoch)
	strays, err := checkpoint.Strays(path)
	if err != nil {
		return err
	}
	if err := d.removeIncarnation(ctx, name, epoch); err != nil {
		return err
	}
	for _, pid := range strays[path] {
		// The processes it worked on are dead, so most likely it is, too.
		err = errors.Join(err, checkpoint.KillStray(pid))
	}
	return err
}

// endRemains removes what a pod that has ended does not need any more.
func (d *Daemon) endRemains(ctx context.Context, name string, epoch pod.Epoch) error {
	network, err := d.net(ctx)
	if err != nil {
		return err
	}
	container, err := d.runtime.Load(name, epoch)
	if err == nil {
		err = container.Release(ctx)
	} else if errors.Is(err, pod.ErrNotFound) {
		err = nil
	}
	return errors.Join(err, network.DeleteNamespace(d.netnsPath(name, epoch)))
}

// removeImages removes a directory of images. One from which a pod could be
// restored loses its name first: half of it would be worse than nothing.
func (d *Daemon) removeImages(ctx context.Context, path string) error {
	if err := sharedmem.End(path); err != nil {
		return err
	}
	kind, of, _ := parseImages(filepath.Base(path))
	switch kind {
	case memoryImages:
		return d.endPagerOf(ctx, path)
	case targetImages:
		used := d.imagesOf(usedImages, of.name, of.epoch)
		if err := os.RemoveAll(used); err != nil {
			return fmt.Errorf("removing images: %w", err)
		}
		if err := os.Rename(path, used); errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return fmt.Errorf("removing images: %w", err)
		}
		path = used
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("removing images: %w", err)
	}
	return nil
}

// abortLost aborts the move of a pod of this host that nobody carries out: the
// one who did is gone, or never learned that it had begun.
func (d *Daemon) abortLost(ctx context.Context, record *pod.Pod) error {
	err := d.dir.AbortMove(ctx, record.Move, pod.StageReserve, fmt.Errorf("host %s: %w", d.Name, errAbandoned))
	if errors.Is(err, directory.ErrCommitted) || errors.Is(err, pod.ErrNotFound) {
		return fmt.Errorf("the pod's record has changed: %w", err)
	}
	if err == nil {
		record.Phase, record.Move = pod.PhaseRunning, ""
	}
	return err
}

// errAbandoned is the cause recorded for a move that nobody carries out.
var errAbandoned = errors.New("nobody carries the move out any more")

// repairHost puts back what the host has for all pods.
func (d *Daemon) repairHost() error {
	d.mu.Lock()
	network := d.network
	d.mu.Unlock()
	if network == nil {
		return nil // it has not been needed yet
	}
	repaired, err := network.Repair()
	for _, what := range repaired {
		d.drifted(drift{kind: driftHost, what: what + " was gone: put back"})
	}
	if err != nil {
		d.drifted(drift{kind: driftHost, what: "the anchor device or the rule against forged packets", err: err})
	}
	return err
}

// noteUnclosed notes the moves that closeMoves is to close.
func (d *Daemon) noteUnclosed(view *directory.View) {
	for _, move := range view.Moves {
		// What keeps memory of a pod closes the move itself.
		if move.State == pod.MoveCommitted && move.Source == d.Name && !move.MemoryPending {
			d.reconciler.unclosed = append(d.reconciler.unclosed, move)
		}
	}
}

// closeMoves closes the moves from here that were committed when podd stopped,
// as soon as nothing is left of their pods. What they measured is lost.
func (d *Daemon) closeMoves(ctx context.Context) error {
	if len(d.reconciler.unclosed) == 0 {
		return nil
	}
	found, err := d.look()
	if err != nil {
		return err
	}
	var errs []error
	d.reconciler.unclosed = slices.DeleteFunc(d.reconciler.unclosed, func(m *pod.Move) bool {
		if _, left := found[m.Pod].found[m.SourceEpoch]; left {
			errs = append(errs, fmt.Errorf("move %s: pod %s is not cleaned up yet", m.ID, namespace.ID(m.Pod, m.SourceEpoch)))
			return false
		}
		err := d.dir.FinishMove(ctx, m.ID, nil)
		if errors.Is(err, pod.ErrNotFound) {
			return true
		}
		errs = append(errs, err)
		return err == nil
	})
	return errors.Join(errs...)
}

const (
	// strayPatience is how long a start or a look waits for a CRIU of an
	// earlier podd to end, strayPoll the pause between two looks, strayLimit
	// after what time it is taken to hang.
	strayPatience = time.Second
	strayPoll     = 10 * time.Millisecond
	strayLimit    = time.Minute
)

// errStray means that a CRIU which lost its podd still works on a pod.
var errStray = fmt.Errorf("%w: the CRIU of an earlier podd is still undoing its work", pod.ErrUnavailable)

// awaitStrays waits until no CRIU works on a pod that an earlier podd has
// started: only then it is known whether the pod is frozen, blocked or alive.
// The error wraps errStray if that takes longer. One that takes far longer is
// killed, while the pod is frozen so that its sockets can be mended.
func (d *Daemon) awaitStrays(ctx context.Context, container *namespace.Container) error {
	path := d.netnsPath(container.Name(), container.Epoch())
	for begin := time.Now(); ; {
		strays, err := checkpoint.Strays(path)
		if err != nil {
			return err
		}
		pids := strays[path]
		if len(pids) == 0 {
			d.reconciler.forgetStrays(container.ID())
			return nil
		}
		if time.Since(begin) > strayPatience {
			return d.judgeStrays(ctx, container, pids)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(strayPoll):
		}
	}
}

// judgeStrays kills the CRIUs of a pod when they have been seen for long.
func (d *Daemon) judgeStrays(ctx context.Context, container *namespace.Container, pids []int) error {
	if d.reconciler.sawStrays(container.ID()) < strayLimit {
		return fmt.Errorf("process %d: %w", pids[0], errStray)
	}
	err := d.freezeForMending(ctx, container)
	for _, pid := range pids {
		err = errors.Join(err, checkpoint.KillStray(pid))
	}
	d.drifted(drift{
		kind: driftCRIU, pod: container.Name(), epoch: container.Epoch(),
		what: fmt.Sprintf("CRIU %d of an earlier podd, which did not end: killed", pids[0]), err: err,
	})
	return errors.Join(err, errStray) // gone at the next look
}

// sawStrays returns for how long a container has had strays.
func (r *reconciler) sawStrays(id string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.strays == nil {
		r.strays = map[string]time.Time{}
	}
	if _, known := r.strays[id]; !known {
		r.strays[id] = time.Now()
	}
	return time.Since(r.strays[id])
}

func (r *reconciler) forgetStrays(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.strays, id)
}

func (d *Daemon) freezeForMending(ctx context.Context, container *namespace.Container) error {
	freezer, err := checkpoint.NewFreezer(container.FreezerDir())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, strayPatience)
	defer cancel()
	return freezer.Freeze(ctx)
}
