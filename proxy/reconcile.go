package proxy

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"podd/directory"
	"podd/fault"
	"podd/pod"
	"podd/proxy/datapath"
)

const (
	// holdLimit bounds how long a pod's packets are queued. It is counted from
	// when this process first saw the hold, so a restart extends it once.
	holdLimit = 30 * time.Second
	// retryInterval is the pause after a failure of the data path.
	retryInterval = time.Second
	// resyncInterval is how often the kernel itself is looked at, to repair
	// what others (a firewall being reloaded) have changed.
	resyncInterval = time.Minute
)

// dataPath is the part of datapath.Datapath that the reconciler drives.
type dataPath interface {
	Set(context.Context, datapath.State) error
	Resync()
}

// reconciler brings the data path to what the directory's view says. One
// goroutine, run, owns all fields but the last ones.
type reconciler struct {
	path    dataPath
	log     *slog.Logger
	metrics *metrics
	limit   time.Duration

	holds   map[string]*hold // by move
	waiting []*holdRequest
	resync  time.Time // when to look at the kernel next

	requests chan *holdRequest
	ready    chan struct{} // closed after the first success

	// view is the newest one; run is the only one that stores.
	view *atomic.Pointer[directory.View]
	// failure is the last Set's error; nil pointer when it went well.
	failure atomic.Pointer[error]
}

// hold is what is known here about the hold of one running move.
type hold struct {
	// asked says that the source called; the journal may say so as well.
	asked bool
	// since is when it began, zero while nobody wants it.
	since time.Time
	// expired says that its time was up.
	expired bool
}

// holdRequest is a call that waits until a move's packets queue.
type holdRequest struct {
	ctx  context.Context
	move string
	done chan error // has room for the one answer
}

func newReconciler(path dataPath, view *atomic.Pointer[directory.View], m *metrics, log *slog.Logger) *reconciler {
	return &reconciler{
		path: path, view: view, log: log, metrics: m, limit: holdLimit,
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
	held := slices.ContainsFunc(state.Pods, func(p datapath.PodPath) bool { return p.Held })
	if now.After(r.resync) && !held { // it takes a while, and a release must not wait
		r.path.Resync()
		r.resync = now.Add(resyncInterval)
	}
	again = min(again, max(r.resync.Sub(now), retryInterval))
	err := r.path.Set(ctx, state)
	r.metrics.setTook(time.Since(now), err)
	for _, request := range answers {
		request.done <- err
	}
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

// noteRequests takes down the holds asked for by calls. It returns those to be
// answered once the data path is set, answers those that can't be met, and
// keeps those whose move the view has yet to show.
func (r *reconciler) noteRequests(view *directory.View) (answers []*holdRequest) {
	r.waiting = slices.DeleteFunc(r.waiting, func(request *holdRequest) bool {
		m := view.Moves[request.move]
		switch {
		case request.ctx.Err() != nil:
			return true // nobody waits for it any more
		case m == nil:
			return false
		case m.State != pod.MoveRunning:
			request.done <- fmt.Errorf("%w: move %s is %s; nothing is held for it", pod.ErrConflict, m.ID, m.State)
			return true
		}
		r.hold(m.ID).asked = true
		answers = append(answers, request)
		return true
	})
	return answers
}

// refuseAll answers the calls that came too late.
func (r *reconciler) refuseAll() {
	for _, request := range r.waiting {
		request.done <- fmt.Errorf("%w: podproxy is stopping", pod.ErrUnavailable)
	}
	r.waiting = nil
}

func (r *reconciler) hold(move string) *hold {
	h := r.holds[move]
	if h == nil {
		h = &hold{}
		r.holds[move] = h
	}
	return h
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
		if m := view.MoveOf(p); m != nil && m.State == pod.MoveRunning {
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

// held is how much longer the packets of a running move are to queue.
func (r *reconciler) held(m *pod.Move, now time.Time) time.Duration {
	h := r.holds[m.ID]
	if !m.Held && (h == nil || !h.asked) {
		return 0
	}
	h = r.hold(m.ID)
	if h.since.IsZero() {
		h.since = now
		r.log.Info("holding the pod's packets", "pod", m.Pod, "move", m.ID)
		if err := fault.At("proxy:hold", nil); err != nil {
			r.log.Error("holding packets meets an error", "error", err)
		}
	}
	left := r.limit - now.Sub(h.since)
	if left <= 0 && !h.expired {
		h.expired = true
		r.metrics.holdEnded("expired", now.Sub(h.since))
		r.log.Warn("the move has neither been committed nor aborted in time; its packets are no longer held",
			"pod", m.Pod, "move", m.ID, "limit", r.limit)
	}
	return max(left, 0)
}

// endHolds forgets the holds of moves that were decided.
func (r *reconciler) endHolds(view *directory.View, now time.Time) {
	for id, h := range r.holds {
		m := view.Moves[id]
		if m != nil && m.State == pod.MoveRunning {
			continue
		}
		if err := fault.At("proxy:release", nil); err != nil {
			r.log.Error("releasing packets meets an error", "error", err)
		}
		delete(r.holds, id)
		if h.since.IsZero() || h.expired {
			continue
		}
		outcome := "aborted"
		if m != nil && m.State != pod.MoveAborted {
			outcome = "committed"
		}
		r.metrics.holdEnded(outcome, now.Sub(h.since))
		r.log.Info("released the pod's packets", "move", id, "outcome", outcome, "held", now.Sub(h.since))
	}
}

// Hold returns once the packets of the moving pod queue, or with the reason why
// they don't: pod.ErrNotFound if the directory shows no such move before ctx
// ends, pod.ErrConflict if it is decided.
func (r *reconciler) Hold(ctx context.Context, move string) error {
	request := &holdRequest{ctx: ctx, move: move, done: make(chan error, 1)}
	select {
	case r.requests <- request:
	case <-ctx.Done():
		return fmt.Errorf("holding move %s: %w", move, context.Cause(ctx))
	}
	select {
	case err := <-request.done:
		if err != nil {
			return fmt.Errorf("holding move %s: %w", move, err)
		}
		return nil
	case <-ctx.Done():
		if v := r.view.Load(); v != nil && v.Moves[move] == nil {
			return fmt.Errorf("move %q: %w", move, pod.ErrNotFound)
		}
		return fmt.Errorf("holding move %s: %w: the data path did not get to it: %w", move, pod.ErrUnavailable, context.Cause(ctx))
	}
}
