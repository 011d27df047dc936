package proxy

import (
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	poddv1 "podd/api/podd/v1"
	"podd/directory"
	"podd/fault"
	"podd/pod"
)

// hold is what is known here about the hold of one running move.
type hold struct {
	// asked says that the source called; the journal may say so as well.
	asked bool
	// since is when it began, zero while nobody wants it.
	since time.Time
	// expired says that its time was up.
	expired bool
}

// heldPod is one hold in force, as others are told of it.
type heldPod struct {
	move, pod string
	since     time.Time
}

// holdRequest is a call that waits until a move's packets queue.
type holdRequest struct {
	ctx  context.Context
	move string
	done chan error // has room for the one answer
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

// held is how much longer the packets of a running move are to queue.
func (r *reconciler) held(m *pod.Move, now time.Time) time.Duration {
	h := r.holds[m.ID]
	if r.limit == 0 || !m.Held && (h == nil || !h.asked) {
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
		if m != nil && (m.State == pod.MoveRunning || m.Undoing()) {
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

// publishHolds tells others of the holds in force.
func (r *reconciler) publishHolds(view *directory.View) {
	holding := make([]heldPod, 0, len(r.holds))
	for id, h := range r.holds {
		if m := view.Moves[id]; m != nil && !h.since.IsZero() && !h.expired {
			holding = append(holding, heldPod{move: id, pod: m.Pod, since: h.since})
		}
	}
	slices.SortFunc(holding, func(a, b heldPod) int { return a.since.Compare(b.since) })
	r.holding.Store(&holding)
}

// Holding are the holds in force, the oldest first.
func (r *reconciler) Holding() []heldPod {
	if holding := r.holding.Load(); holding != nil {
		return *holding
	}
	return nil
}

// oldestHold is how long the oldest hold has lasted, 0 when there is none.
func (r *reconciler) oldestHold() time.Duration {
	if holding := r.Holding(); len(holding) > 0 {
		return time.Since(holding[0].since)
	}
	return 0
}

// ListHolds tells which pods' packets are queued.
func (s *service) ListHolds(context.Context, *connect.Request[poddv1.ListHoldsRequest]) (*connect.Response[poddv1.ListHoldsResponse], error) {
	now := time.Now()
	response := &poddv1.ListHoldsResponse{Time: timestamppb.New(now)}
	for _, h := range s.reconciler.Holding() {
		response.Holds = append(response.Holds, &poddv1.Hold{
			Move: h.move, Pod: h.pod,
			Duration: durationpb.New(now.Sub(h.since)), Limit: durationpb.New(s.reconciler.limit),
		})
	}
	return connect.NewResponse(response), nil
}
