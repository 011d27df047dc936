package podd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"podd/directory"
	"podd/pod"
)

const (
	// reconcileInterval is how often the host itself is looked at; the
	// directory is followed all the time.
	reconcileInterval = time.Minute
	// recoverRetry is the pause after something could not be put right: the
	// proxy may be missing, or memory.
	recoverRetry = 2 * time.Second
)

// reconciler is what the loop remembers between two looks. Its zero value is
// ready.
type reconciler struct {
	wakeOnce sync.Once
	wakes    chan struct{}
	// unclosed are the moves from here that were committed when podd started:
	// they are closed when nothing is left of the pod. revision is the highest
	// that the directory was seen at. Only the start and the loop use them.
	unclosed []*pod.Move
	revision int64
	// mu guards strays: since when a container has had some.
	mu     sync.Mutex
	strays map[string]time.Time
}

func (r *reconciler) wake() chan struct{} {
	r.wakeOnce.Do(func() { r.wakes = make(chan struct{}, 1) })
	return r.wakes
}

// wakeReconcile makes the loop look now.
func (d *Daemon) wakeReconcile() {
	select {
	case d.reconciler.wake() <- struct{}{}:
	default: // it will
	}
}

// keepReconciled brings this host to what the directory says, again and again:
// when the directory says something that is not so here, and every minute,
// whatever it says.
func (d *Daemon) keepReconciled(ctx context.Context, again bool) {
	views := d.dir.Watch(ctx)
	pause := func(again bool) time.Duration {
		if again {
			return recoverRetry
		}
		return reconcileInterval
	}
	timer := time.NewTimer(pause(again))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-d.reconciler.wake():
		case view, ok := <-views:
			if !ok {
				return
			}
			if !d.differs(view) {
				continue
			}
		}
		again, err := d.reconcile(ctx, false)
		timer.Reset(pause(again || err != nil))
	}
}

// differs reports whether the directory has other pods here than this podd, not
// counting those that an operation works on. A view is of the past, so this is
// a reason to look and no more.
func (d *Daemon) differs(view *directory.View) bool {
	d.mu.Lock()
	tracked := maps.Clone(d.pods)
	d.mu.Unlock()
	busy := func(name string) bool {
		release, ok := d.claims.try(name)
		if ok {
			release()
		}
		return !ok
	}
	for name, p := range tracked {
		if superseded(d.Name, view.Pods[name], p) && !p.over() && !busy(name) {
			return true
		}
	}
	for name, record := range view.Pods {
		if record.Binding.Host == d.Name && record.Phase.Live() && tracked[name] == nil && !busy(name) {
			return true
		}
	}
	return false
}

// errRewound keeps a podd from removing every pod because somebody has made the
// directory anew, or put back an old one.
var errRewound = errors.New("the directory has gone back in time: nothing is changed on its word until podd is restarted")

// reconcile looks once at everything this host has. What it finds is handled one
// pod at a time, each under its claim and by a fresh record, so that nothing is
// touched that an operation is building. again says that something is left to be
// done; an error, that it could not look.
func (d *Daemon) reconcile(ctx context.Context, starting bool) (again bool, err error) {
	defer func() {
		if d.drifts.looked(err) && ctx.Err() == nil {
			d.log.Warn("comparing this host with the directory has to wait", "error", err)
		}
	}()
	// The host before the directory: what somebody makes in between has a
	// record by then, or a claim.
	found, err := d.look()
	if err != nil {
		return true, err
	}
	view, err := d.dir.View(ctx)
	if err != nil {
		return true, err
	}
	if view.Revision < d.reconciler.revision {
		return true, fmt.Errorf("%w: it is at revision %d and was at %d", errRewound, view.Revision, d.reconciler.revision)
	}
	d.reconciler.revision = view.Revision
	names := map[string]bool{}
	for name := range found {
		names[name] = true
	}
	for name, record := range view.Pods {
		if record.Binding.Host == d.Name {
			names[name] = true
		}
	}
	d.mu.Lock()
	for name := range d.pods {
		names[name] = true
	}
	d.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(names)) {
		release, ok := d.claims.try(name)
		if !ok {
			continue // an operation works on it, and will leave it in order
		}
		err := d.reconcilePod(ctx, name, view.Pods[name], found[name], starting)
		release()
		if err != nil {
			again = true
		}
		if ctx.Err() != nil {
			return true, context.Cause(ctx)
		}
	}
	if err := d.repairHost(); err != nil {
		again = true
	}
	if err := d.closeMoves(ctx); err != nil {
		d.log.Warn("closing moves that a restart interrupted has to wait", "error", err)
		again = true
	}
	return again, nil
}

// reconcilePod puts one pod of this host right. Its claim is held. The record and
// what was found are of the past: if they call for something, both are read anew.
func (d *Daemon) reconcilePod(ctx context.Context, name string, record *pod.Pod, l local, starting bool) error {
	d.mu.Lock()
	p := d.pods[name]
	d.mu.Unlock()
	if p != nil {
		// A move, or the end of the pod, is under way.
		if !p.mu.TryLock() {
			return nil
		}
		defer p.mu.Unlock()
		if p.over() {
			return nil
		}
	}
	if err := d.addState(name, &l, p); err != nil {
		d.log.Error("looking at a pod failed", "pod", name, "error", err)
		return err
	}
	if len(plan(d.Name, record, l)) == 0 {
		return nil
	}
	record, err := d.dir.Pod(ctx, name)
	if err != nil && !errors.Is(err, pod.ErrNotFound) {
		return err
	}
	found, err := d.look()
	if err != nil {
		return err
	}
	l = found[name]
	if err := d.addState(name, &l, p); err != nil {
		return err
	}
	for _, step := range plan(d.Name, record, l) {
		err := d.carryOut(ctx, name, record, step)
		if err == nil && starting && step.kind == driftUntracked {
			continue // no pod is looked after when podd starts
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		d.drifted(drift{kind: step.kind, pod: name, epoch: step.epoch, what: step.what, err: err})
		if err != nil {
			// What follows may depend on it.
			return err
		}
	}
	return nil
}

// carryOut does one step of a plan.
func (d *Daemon) carryOut(ctx context.Context, name string, record *pod.Pod, s step) error {
	switch s.kind {
	case driftSuperseded:
		return d.supersede(ctx, s.tracked)
	case driftContainer, driftNetwork:
		if s.ended {
			return d.endRemains(ctx, name, s.epoch)
		}
		return d.removeRemains(ctx, name, s.epoch)
	case driftImages:
		return d.removeImages(ctx, s.path)
	case driftMove:
		return d.abortLost(ctx, record)
	case driftUntracked:
		return d.recoverPod(ctx, record)
	case driftFrozen, driftBlocked:
		pid, running := s.tracked.container.PID()
		if !running {
			return nil // its monitor sees to it
		}
		return d.unfreeze(ctx, s.tracked.container, pid, false)
	}
	return fmt.Errorf("there is no way to put right %q", s.kind)
}
