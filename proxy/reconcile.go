package proxy

import (
	"context"
	"log/slog"
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
	// followed is the newest view that the kernel is in line with.
	followed *directory.View

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
	state, again := r.state(view, now)
	err := r.path.Set(ctx, state)
	r.metrics.setTook(time.Since(now), err)
	if err == nil && r.followed != view {
		r.followed = view
		r.metrics.followed(view.Received)
	}
	r.publishHolds(view)
	for _, request := range answers {
		request.done <- err
	}
	held := slices.ContainsFunc(state.Pods, func(p datapath.PodPath) bool { return p.Held })
	if err == nil && now.After(r.resync) && !held { // it takes a while, and a release must not wait
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
	s := datapath.State{Pods: make([]datapath.PodPath, 0, len(view.Pods))}
	for _, h := range view.Hosts {
		s.Hosts = append(s.Hosts, h.Physical)
	}
	for _, p := range view.Pods {
		if p.Phase != pod.PhaseCreating && !p.Phase.Live() {
			continue
		}
		path := datapath.PodPath{Binding: p.Binding}
		// Until the source has undone an aborted move nobody could take them.
		if m := view.MoveOf(p); m != nil && (m.State == pod.MoveRunning || m.Undoing()) {
			path.Next = &m.Next
			left := r.held(m, now)
			path.Held = left > 0
			if path.Held {
				again = min(again, left)
			}
		}
		s.Pods = append(s.Pods, path)
	}
	return s, again
}
