package podd

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"podd/api/podd/v1/poddv1connect"
	"podd/namespace"
	"podd/pod"
)

// exitGrace is how long a pod that is removed on exit is kept for somebody to
// fetch its output and exit code.
const exitGrace = 10 * time.Second

// localPod is a pod whose incarnation is on this host.
type localPod struct {
	name      string
	epoch     pod.Epoch
	container *namespace.Container

	// mu is held by whatever changes the pod as a whole: a move, its end.
	mu sync.Mutex
	// left says, under mu, that the pod has moved away: what happens to the
	// processes here is no longer the pod's fate.
	left bool
	// gone is closed when the pod has left or ended.
	gone chan struct{}
	// moving points to a channel that is closed when the move under way ends,
	// nil when there is none.
	moving atomic.Pointer[chan struct{}]
	// memory is what the pod is still being given after a move, nil if it has all.
	memory atomic.Pointer[arriving]
	// collected is closed when somebody was told the exit code.
	collected   chan struct{}
	collectOnce sync.Once
}

// beginMove marks the pod as moving until the returned function is called.
func (p *localPod) beginMove() (end func()) {
	done := make(chan struct{})
	p.moving.Store(&done)
	return func() {
		p.container.OpenSessions()
		p.moving.Store(nil)
		close(done)
	}
}

// awaitMove returns when no move is under way.
func (p *localPod) awaitMove(ctx context.Context) error {
	done := p.moving.Load()
	if done == nil {
		return nil
	}
	select {
	case <-*done:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// over reports whether the pod has left or ended; somebody is about to forget it.
func (p *localPod) over() bool {
	select {
	case <-p.gone:
		return true
	default:
		return false
	}
}

func (p *localPod) collect() { p.collectOnce.Do(func() { close(p.collected) }) }

// localPod finds a pod that runs here. The error wraps pod.ErrPhase when there
// is none.
func (d *Daemon) localPod(name string) (*localPod, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.pods[name]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("pod %s: %w: it does not run on host %s", name, pod.ErrPhase, d.Name)
}

// track takes a running container into the daemon's care until it ends or moves.
func (d *Daemon) track(name string, epoch pod.Epoch, container *namespace.Container) *localPod {
	p := &localPod{name: name, epoch: epoch, container: container, gone: make(chan struct{}), collected: make(chan struct{})}
	d.mu.Lock()
	d.pods[name] = p
	d.mu.Unlock()
	d.background(func(ctx context.Context) { d.monitor(ctx, p) })
	return p
}

// forget ends the daemon's care of a pod.
func (d *Daemon) forget(p *localPod) {
	d.mu.Lock()
	if d.pods[p.name] == p {
		delete(d.pods, p.name)
	}
	d.mu.Unlock()
}

// monitor waits for the end of a pod's main command and records it.
func (d *Daemon) monitor(ctx context.Context, p *localPod) {
	log := d.log.With("pod", p.name)
	code, err := p.container.Wait(ctx)
	if ctx.Err() != nil {
		return // the daemon stops, the pod lives on
	}
	// A move that is under way notices by itself, and gives up.
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.left {
		return
	}
	defer close(p.gone)
	if !p.container.Config().Spec.RemoveOnExit {
		defer d.forget(p)
	}
	if err != nil {
		log.Error("the exit status of the main command is not known", "error", err)
	}
	log.Info("the main command ended", "code", code)
	if err := d.endIncarnation(ctx, p); err != nil {
		log.Error("taking down an ended pod failed", "error", err)
	}
	if err := d.recordExit(ctx, p, code); err != nil {
		log.Error("recording the end of a pod failed", "error", err)
		return
	}
	if p.container.Config().Spec.RemoveOnExit {
		d.background(func(ctx context.Context) { d.removeWhenCollected(ctx, p) })
	}
}

// recordExit writes the end of a pod into the directory, as often as it takes
// to reach it.
func (d *Daemon) recordExit(ctx context.Context, p *localPod, code int) error {
	ended := time.Now().UTC()
	for {
		err := d.dir.UpdatePod(ctx, p.name, func(record *pod.Pod) error {
			if superseded(d.Name, record, p) {
				return fmt.Errorf("%w: a newer incarnation exists", pod.ErrConflict)
			}
			record.Phase, record.ExitCode, record.StoppedAt = pod.PhaseStopped, code, ended
			return nil
		})
		if !errors.Is(err, pod.ErrUnavailable) || ctx.Err() != nil {
			return err
		}
		d.log.Warn("the directory can't be told that a pod ended; trying again", "pod", p.name, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(directoryRetry):
		}
	}
}

// directoryRetry is the pause between attempts to reach the directory.
const directoryRetry = time.Second

// removeWhenCollected removes a pod once its exit code was fetched.
func (d *Daemon) removeWhenCollected(ctx context.Context, p *localPod) {
	timer := time.NewTimer(exitGrace)
	defer timer.Stop()
	select {
	case <-p.collected:
	case <-timer.C:
	case <-ctx.Done():
		return // the next start removes it
	}
	release, err := d.claim(ctx, p.name)
	if err != nil {
		return
	}
	defer release()
	defer d.forget(p)
	if err := d.remove(ctx, p.name, p.epoch); err != nil {
		d.log.Error("removing a pod on exit failed; it is tried again", "pod", p.name, "error", err)
		d.wakeReconcile()
	}
}

// endIncarnation takes down what only a running pod needs; its files stay.
func (d *Daemon) endIncarnation(ctx context.Context, p *localPod) error {
	network, err := d.net(ctx)
	if err != nil {
		return err
	}
	return errors.Join(p.container.Release(ctx), network.DeleteNamespace(d.netnsPath(p.name, p.epoch)))
}

// removeIncarnation removes every trace of one incarnation, files and all,
// whether it ever ran or not. Its NIC goes first: processes that die close their
// connections, and nobody is to hear of it.
func (d *Daemon) removeIncarnation(ctx context.Context, name string, epoch pod.Epoch) error {
	network, err := d.net(ctx)
	if err != nil {
		return err
	}
	path := d.netnsPath(name, epoch)
	if err := network.Detach(path); err != nil {
		return err
	}
	// What a crash left may have no record; the names tell it all the same.
	return errors.Join(d.runtime.Remove(ctx, name, epoch), network.DeleteNamespace(path))
}

// remove deletes a pod that has no processes any more. The files go first: a
// record without files can be removed again, files without a record are lost.
func (d *Daemon) remove(ctx context.Context, name string, epoch pod.Epoch) error {
	if err := d.removeIncarnation(ctx, name, epoch); err != nil {
		return err
	}
	return d.dir.DeletePod(ctx, name)
}

// stop sends the stop signal, and SIGKILL after the timeout.
func (d *Daemon) stop(ctx context.Context, name string, timeout time.Duration) error {
	p, err := d.settledPod(ctx, name)
	if err != nil {
		return err
	}
	signal := unix.SIGTERM
	if name := p.container.StopSignal(); name != "" {
		if signal, err = parseSignal(name); err != nil {
			return fmt.Errorf("the image's stop signal: %w", err)
		}
	}
	if err := p.container.Signal(signal); err != nil {
		return err
	}
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-p.gone:
		return nil
	case <-timer.C:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := p.kill(d); err != nil && !errors.Is(err, pod.ErrPhase) {
		return err
	}
	select {
	case <-p.gone:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// parseSignal reads a name with or without SIG, or a number.
func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n <= lastSignal {
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if signal := unix.SignalNum(name); signal != 0 {
		return signal, nil
	}
	return 0, fmt.Errorf("%w: unknown signal %q", pod.ErrInvalid, s)
}

// lastSignal is the highest real-time signal, SIGRTMAX.
const lastSignal = 64

// settledPod finds a running pod that is not being moved.
func (d *Daemon) settledPod(ctx context.Context, name string) (*localPod, error) {
	record, err := d.dir.Pod(ctx, name)
	if err != nil {
		return nil, err
	}
	switch {
	case record.Phase == pod.PhaseMoving:
		return nil, fmt.Errorf("pod %s: %w: move %s is under way; try again when it has ended", name, pod.ErrConflict, record.Move)
	case !record.Phase.Live():
		return nil, fmt.Errorf("pod %s: %w: it is %s", name, pod.ErrPhase, record.Phase)
	}
	p, err := d.localPod(name)
	if err == nil || record.Binding.Host != d.Name {
		return p, err
	}
	// Its move here is committed, and it is about to be taken over: whoever has
	// the claim does that.
	release, err := d.claim(ctx, name)
	if err != nil {
		return nil, err
	}
	release()
	return d.localPod(name)
}

// kill sends a signal to a pod's main command; SIGKILL ends the whole pod.
func (d *Daemon) kill(ctx context.Context, name string, signal unix.Signal) error {
	p, err := d.settledPod(ctx, name)
	if err != nil {
		return err
	}
	if signal == unix.SIGKILL {
		return p.kill(d)
	}
	return p.container.Signal(signal)
}

// removePod deletes a pod and its files; force ends it first.
func (d *Daemon) removePod(ctx context.Context, name string, force bool) error {
	record, err := d.dir.Pod(ctx, name)
	if err != nil {
		return err
	}
	if record.Binding.Host != d.Name {
		return d.removeOrphan(ctx, record, force)
	}
	if (record.Phase.Live() || record.Phase == pod.PhaseCreating) && !force {
		return fmt.Errorf("pod %s: %w: it is %s; stop it first or use --force", name, pod.ErrPhase, record.Phase)
	}
	if record.Phase.Live() {
		p, err := d.settledPod(ctx, name)
		if err != nil {
			return err
		}
		if err := p.kill(d); err != nil && !errors.Is(err, pod.ErrPhase) {
			return err
		}
		select {
		case <-p.gone:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	release, err := d.claim(ctx, name)
	if err != nil {
		return err
	}
	defer release()
	// It may have gone to another host, or have been removed and made anew.
	epoch, label := record.Binding.Epoch, record.Binding.Label
	if record, err = d.dir.Pod(ctx, name); err != nil {
		return err
	}
	switch {
	case record.Binding.Label != label:
		return fmt.Errorf("pod %s: %w: it is on host %s now; try again", name, pod.ErrConflict, record.Binding.Host)
	case record.Phase.Live():
		return fmt.Errorf("pod %s: %w: it is %s; try again", name, pod.ErrConflict, record.Phase)
	}
	return d.remove(ctx, name, epoch)
}

// removeOrphan deletes the record of a pod whose host is down for good. Should
// the host come back, or should it only be cut off, then what it has of the pod
// speaks with a label that is nobody's any more, and its podd removes it.
func (d *Daemon) removeOrphan(ctx context.Context, record *pod.Pod, force bool) error {
	name := record.Name()
	host, err := d.dir.Host(ctx, record.Binding.Host)
	switch {
	case err != nil && !errors.Is(err, pod.ErrNotFound):
		return err
	case err == nil && host.Alive:
		return fmt.Errorf("pod %s: %w: it is on host %s, which has just come back; try again", name, pod.ErrConflict, host.Name)
	case !force:
		return fmt.Errorf("pod %s: %w: host %s, where it is, is down; if that host is gone for good, --force removes the pod with all that it had", name, pod.ErrUnavailable, record.Binding.Host)
	}
	if record.Move != "" {
		// One that the target commits just now wins: the pod lives there.
		err := d.dir.AbortMove(ctx, record.Move, pod.StageReserve, fmt.Errorf("pod %s was removed, because host %s is down", name, record.Binding.Host))
		if err != nil && !errors.Is(err, pod.ErrNotFound) {
			return fmt.Errorf("pod %s: %w; try again", name, err)
		}
	}
	d.log.Warn("removing a pod whose host is down", "pod", name, "lost", record.Binding.Host, "epoch", record.Binding.Epoch)
	return d.dir.DeletePod(ctx, name)
}

// servesHere reports whether a call about another host's pod is served by this
// podd: the removal of a pod whose host is down.
func (d *Daemon) servesHere(r *http.Request, host string) bool {
	if r.URL.Path != poddv1connect.PodServiceRemovePodProcedure {
		return false
	}
	h, err := d.dir.Host(r.Context(), host)
	return errors.Is(err, pod.ErrNotFound) || err == nil && !h.Alive
}

// wait returns when a pod's main command has ended, with its exit code. The
// error wraps pod.ErrConflict if the pod moves away first: ask there.
func (d *Daemon) wait(ctx context.Context, name string) (int, error) {
	container, p, err := d.outputs(ctx, name)
	if err != nil {
		return 0, err
	}
	code, err := container.Wait(ctx)
	if err != nil {
		return 0, err
	}
	if left, err := movedAway(ctx, p); err != nil {
		return 0, err
	} else if left {
		return 0, fmt.Errorf("pod %s: %w: it has moved to another host", name, pod.ErrConflict)
	}
	if p != nil {
		p.collect()
	}
	return code, nil
}
