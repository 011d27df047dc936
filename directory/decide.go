package directory

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"podd/pod"
)

// The two ways a move can have been decided already. Both are conflicts.
var (
	// ErrCommitted means the target holds the pod; the source must never run again.
	ErrCommitted = fmt.Errorf("%w: the move is committed", pod.ErrConflict)
	// ErrAborted means the source holds the pod; the target must not run it.
	ErrAborted = fmt.Errorf("%w: the move was aborted", pod.ErrConflict)
)

// CommitMove is the point of no return: in one transaction the pod's binding
// becomes the move's Next, the pod runs, and the move is committed. It returns
// nil if the move is committed, whoever asked first, and an error that wraps
// ErrAborted if it was aborted. The memory of a post-copy move is pending then. After pod.ErrUnavailable the outcome is unknown:
// ask again.
func (d *Directory) CommitMove(ctx context.Context, id string) error {
	return d.decide(ctx, id, "committing", func(m *pod.Move, p *pod.Pod) error {
		switch {
		case m.State == pod.MoveAborted:
			return decided(m)
		case m.State == pod.MoveQueued:
			return fmt.Errorf("%w: move %s has not begun", pod.ErrConflict, id)
		case m.State != pod.MoveRunning:
			return errAlready
		case p == nil:
			return fmt.Errorf("pod %q: %w", m.Pod, pod.ErrNotFound)
		case p.Phase != pod.PhaseMoving || p.Move != id:
			return fmt.Errorf("%w: pod %s is %s", pod.ErrPhase, m.Pod, p.Phase)
		case p.Binding.Epoch != m.SourceEpoch:
			return fmt.Errorf("%w: pod %s is at epoch %d, not %d", pod.ErrConflict, m.Pod, p.Binding.Epoch, m.SourceEpoch)
		}
		m.State, m.Stage, m.Held = pod.MoveCommitted, pod.StageCommit, false
		m.MemoryPending = m.Chosen == pod.StrategyPostCopy
		p.Binding, p.Phase, p.Move = m.Next, pod.PhaseRunning, ""
		return nil
	})
}

// AbortMove gives the pod back to the source, in one transaction, unless the
// move is committed already: then the error wraps ErrCommitted, and the source
// must not run again. It returns nil if the move is aborted, whoever asked
// first, and completes what CancelMove has begun. Only the source may ask, as
// soon as the pod goes on there. After pod.ErrUnavailable the outcome is
// unknown: ask again.
func (d *Directory) AbortMove(ctx context.Context, id string, stage pod.Stage, cause error) error {
	err := d.decide(ctx, id, "aborting", func(m *pod.Move, p *pod.Pod) error {
		switch {
		case m.State == pod.MoveAborted && !m.Undoing():
			return errAlready
		case m.State == pod.MoveCommitted, m.State == pod.MoveDone:
			return decided(m)
		}
		// Whoever decided has said why; the source knows best where.
		if m.State != pod.MoveAborted && cause != nil {
			m.Error = cause.Error()
		}
		m.State, m.FailedStage, m.Held = pod.MoveAborted, stage, false
		m.EndedAt = time.Now().UTC()
		if p != nil && p.Move == id {
			p.Move = ""
			if p.Phase == pod.PhaseMoving { // else it ended on its own meanwhile
				p.Phase = pod.PhaseRunning
			}
		}
		return nil
	})
	if err == nil {
		d.pruneMoves(ctx)
	}
	return err
}

// CancelMove decides, for anybody, that a move is aborted, unless it is
// committed already: then the error wraps ErrCommitted. It returns nil if the
// move is aborted, whoever asked first. The pod stays the move's, and its
// packets stay held, until the source has undone what it did and calls
// AbortMove; a move in the queue is over at once.
func (d *Directory) CancelMove(ctx context.Context, id string, stage pod.Stage, cause error) error {
	return d.updateMove(ctx, id, "cancelling", func(m *pod.Move) error {
		switch m.State {
		case pod.MoveAborted:
			return nil
		case pod.MoveCommitted, pod.MoveDone:
			return decided(m)
		case pod.MoveQueued:
			m.EndedAt = time.Now().UTC()
		}
		m.State, m.FailedStage = pod.MoveAborted, stage
		if cause != nil {
			m.Error = cause.Error()
		}
		return nil
	})
}

// errAlready says that the move is decided as asked.
var errAlready = errors.New("already decided")

// moveRecords are a move and its pod as they are stored, at one revision.
type moveRecords struct{ move, pod *mvccpb.KeyValue }

// readMove reads a move and its pod; the pod is nil when its record is gone.
func (d *Directory) readMove(ctx context.Context, id string) (*moveRecords, error) {
	resp, err := d.etcd.Get(ctx, movePrefix+id)
	if err != nil {
		return nil, err
	}
	r := &moveRecords{move: first(resp)}
	m, err := decodeMove(id, r.move)
	if err != nil {
		return nil, err
	}
	// The pod as it was at that revision: a pod that is newer than the move
	// would tell a story that never was.
	resp, err = d.etcd.Get(ctx, podPrefix+m.Pod, clientv3.WithRev(resp.Header.Revision))
	if err != nil {
		return nil, err
	}
	r.pod = first(resp)
	return r, nil
}

// ReadAhead reads what the next CommitMove or AbortMove of the move from here
// will compare, so that it is one round trip instead of three: a pod is frozen
// meanwhile. If the records change before, that one reads them again.
func (d *Directory) ReadAhead(ctx context.Context, id string) error {
	r, err := d.readMove(ctx, id)
	if err != nil {
		return d.explain(ctx, "reading move "+id, err)
	}
	d.aheadMu.Lock()
	defer d.aheadMu.Unlock()
	d.ahead[id] = r
	return nil
}

// takeAhead returns what ReadAhead has read, once; nil if it did not.
func (d *Directory) takeAhead(id string) *moveRecords {
	d.aheadMu.Lock()
	defer d.aheadMu.Unlock()
	r := d.ahead[id]
	delete(d.ahead, id)
	return r
}

// decide changes a move and its pod together. change gets a nil pod when the
// record is gone.
func (d *Directory) decide(ctx context.Context, id, what string, change func(*pod.Move, *pod.Pod) error) error {
	// What was read ahead serves for the first attempt only.
	ahead := d.takeAhead(id)
	return d.retry(ctx, what+" move "+id, func(ctx context.Context) error {
		r := ahead
		ahead = nil
		if r == nil {
			var err error
			if r, err = d.readMove(ctx, id); err != nil {
				return err
			}
		}
		m, err := decodeMove(id, r.move)
		if err != nil {
			return err
		}
		var p *pod.Pod
		if r.pod != nil {
			if p, err = decode[pod.Pod](r.pod); err != nil {
				return err
			}
		}
		if err := change(m, p); err != nil {
			if errors.Is(err, errAlready) {
				return nil
			}
			return err
		}
		moveKey, podKey := movePrefix+id, podPrefix+m.Pod
		changes := []clientv3.Op{put(moveKey, m)}
		if p != nil {
			changes = append(changes, put(podKey, p))
		}
		// Both records as they were read: the move is still running, the pod
		// still at the epoch and with the binding that moves.
		return d.write(ctx, []clientv3.Cmp{unchanged(moveKey, r.move), unchanged(podKey, r.pod)}, changes...)
	})
}
