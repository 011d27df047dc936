package proxy

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"podd/directory"
	"podd/pod"
	"podd/proxy/datapath"
)

const (
	// holdLimit bounds how long a pod's packets are queued, unless podproxy is
	// told otherwise. It is counted from when this process first saw the hold,
	// so each restart begins it anew.
	holdLimit = 30 * time.Second
	// retryInterval is the pause after a failure of the data path.
	retryInterval = time.Second
	// resyncInterval is how often the kernel itself is looked at, to repair
	// what others (a firewall being reloaded) have changed.
	resyncInterval = time.Minute
	// repairsLogged is how many repairs of one kind are told in full.
	repairsLogged = 5
)

// dataPath is the part of datapath.Datapath that the reconciler drives.
type dataPath interface {
	Set(context.Context, datapath.State) error
	Update(context.Context, datapath.Change) error
	Repair(context.Context, datapath.State) ([]datapath.Repair, error)
}

// reconciler brings the data path to what the directory's view says. One
// goroutine, run, owns all fields but the last ones.
type reconciler struct {
	path    dataPath
	log     *slog.Logger
	metrics *metrics
	// limit is how long a hold may last, interval the time between two looks
	// at the kernel.
	limit, interval time.Duration

	holds   map[string]*hold // by move
	waiting []*holdRequest
	resync  time.Time // when to look at the kernel next
	// followed is the newest view that the kernel is in line with; nil after a
	// failure, when it may be in line with none.
	followed *directory.View
	// placed are the virtual addresses of the pods that have a path, by name.
	placed map[string]netip.Addr

	requests chan *holdRequest
	ready    chan struct{} // closed after the first success

	// view is the newest one; run is the only one that stores.
	view *atomic.Pointer[directory.View]
	// holding are the holds in force; run is the only one that stores.
	holding atomic.Pointer[[]heldPod]
	// repairs are what the last look that found anything has; run stores.
	repairs atomic.Pointer[repaired]
	// failure is the last Set's error; nil pointer when it went well.
	failure atomic.Pointer[error]
}

func newReconciler(path dataPath, view *atomic.Pointer[directory.View], m *metrics, log *slog.Logger) *reconciler {
	return &reconciler{
		path: path, view: view, log: log, metrics: m, limit: holdLimit, interval: resyncInterval,
		holds:    map[string]*hold{},
		resync:   time.Now().Add(resyncInterval),
		requests: make(chan *holdRequest),
		ready:    make(chan struct{}),
	}
}

// run follows the views until the channel is closed, which its owner does when
// ctx ends. The data path stays as it is.
func (r *reconciler) run(ctx context.Context, views <-chan *directory.View) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case v, ok := <-views:
			if !ok {
				r.refuseAll()
				return
			}
			r.view.Store(v)
		case request := <-r.requests:
			r.waiting = append(r.waiting, request)
		case <-timer.C:
		}
		if r.view.Load() != nil {
			timer.Reset(r.step(ctx, time.Now()))
		}
	}
}

// step sets the data path once and returns when to do so again at the latest.
func (r *reconciler) step(ctx context.Context, now time.Time) time.Duration {
	view := r.view.Load()
	answers := r.noteRequests(view)
	again, err := r.set(ctx, view, now)
	r.metrics.setTook(time.Since(now), err)
	if err == nil && r.followed != view {
		r.metrics.followed(view.Received)
	}
	r.followed = view
	if err != nil {
		r.followed = nil
	}
	r.publishHolds(view)
	for _, request := range answers {
		request.done <- err
	}
	if err == nil && now.After(r.resync) && len(r.Holding()) == 0 { // it takes a while, and a release must not wait
		state, _ := r.state(view, now)
		err = r.repair(ctx, state)
		r.resync = now.Add(r.interval)
	}
	again = min(again, max(r.resync.Sub(now), retryInterval))
	if err != nil && ctx.Err() == nil {
		r.failure.Store(&err)
		r.log.Error("the data path is not as it should be; trying again", "error", err)
		return min(again, retryInterval)
	}
	r.failure.Store(nil)
	select {
	case <-r.ready:
	default:
		close(r.ready)
	}
	return again
}

// set brings the data path to the view: by the changes since the one that it is
// in line with, where they are known, and otherwise as a whole.
func (r *reconciler) set(ctx context.Context, view *directory.View, now time.Time) (again time.Duration, err error) {
	if change, again, ok := r.change(view, now); ok {
		if err := r.path.Update(ctx, change); !errors.Is(err, datapath.ErrStale) {
			return again, err
		}
	}
	state, again := r.state(view, now)
	return again, r.path.Set(ctx, state)
}

// repair compares the kernel with state, which is what it was set to, and
// tells what others had changed.
func (r *reconciler) repair(ctx context.Context, state datapath.State) error {
	repairs, err := r.path.Repair(ctx, state)
	if len(repairs) > 0 {
		r.repairs.Store(&repaired{at: time.Now(), found: repairs})
	}
	byKind := map[string][]string{}
	for _, repair := range repairs {
		r.metrics.repaired(repair.Kind)
		byKind[repair.Kind] = append(byKind[repair.Kind], repair.Detail)
	}
	for kind, found := range byKind {
		r.log.Warn("repaired what something other than podproxy has changed", "kind", kind,
			"count", len(found), "found", found[:min(len(found), repairsLogged)])
	}
	return err
}

// state is what the data path should be. It also returns when the next hold
// runs out.
func (r *reconciler) state(view *directory.View, now time.Time) (datapath.State, time.Duration) {
	r.endHolds(view, now)
	again := resyncInterval
	s := datapath.State{Hosts: hosts(view), Pods: make([]datapath.PodPath, 0, len(view.Pods))}
	r.placed = make(map[string]netip.Addr, len(view.Pods))
	for name, p := range view.Pods {
		if !reachable(p) {
			continue
		}
		path, left := r.pathTo(view, p, now)
		again = min(again, left)
		s.Pods = append(s.Pods, path)
		r.placed[name] = p.Binding.Virtual
	}
	return s, again
}

// change is how state differs from that of the view followed. ok is false when
// that is not known. It looks at the pods that have changed and those that are
// held, for holds end with time.
func (r *reconciler) change(view *directory.View, now time.Time) (c datapath.Change, again time.Duration, ok bool) {
	if r.followed == nil {
		return c, 0, false
	}
	names, ok := view.PodsChangedSince(r.followed)
	if !ok {
		return c, 0, false
	}
	names = slices.Clone(names)
	for id := range r.holds {
		if m := view.Moves[id]; m != nil {
			names = append(names, m.Pod)
		}
	}
	r.endHolds(view, now)
	again = resyncInterval
	c.Hosts = hosts(view)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if old, had := r.placed[name]; had {
			c.Gone = append(c.Gone, old)
			delete(r.placed, name)
		}
		p := view.Pods[name]
		if p == nil || !reachable(p) {
			continue
		}
		path, left := r.pathTo(view, p, now)
		again = min(again, left)
		c.Pods = append(c.Pods, path)
		r.placed[name] = p.Binding.Virtual
	}
	return c, again, true
}

func hosts(view *directory.View) []netip.Addr {
	addresses := make([]netip.Addr, 0, len(view.Hosts))
	for _, h := range view.Hosts {
		addresses = append(addresses, h.Physical)
	}
	return addresses
}

// reachable reports whether a pod is to have a path.
func reachable(p *pod.Pod) bool { return p.Phase == pod.PhaseCreating || p.Phase.Live() }

// pathTo is the way to one pod. It also returns when its hold runs out, if it
// has one.
func (r *reconciler) pathTo(view *directory.View, p *pod.Pod, now time.Time) (datapath.PodPath, time.Duration) {
	path, again := datapath.PodPath{Binding: p.Binding}, resyncInterval
	// Until the source has undone an aborted move nobody could take them.
	if m := view.MoveOf(p); m != nil && (m.State == pod.MoveRunning || m.Undoing()) {
		path.Next = &m.Next
		if left := r.held(m, now); left > 0 {
			path.Held, again = true, left
		}
	}
	return path, again
}
