package directory

import (
	"context"
	"fmt"
	"slices"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"podd/pod"
)

// finished reports whether nothing remains to be done for the move.
func finished(m *pod.Move) bool {
	return m.State == pod.MoveDone || m.State == pod.MoveAborted && !m.Undoing()
}

// decided is the error that tells how a move that may not be decided any more
// was decided.
func decided(m *pod.Move) error {
	switch m.State {
	case pod.MoveQueued, pod.MoveRunning:
		return nil
	case pod.MoveAborted:
		return fmt.Errorf("move %s: %w at stage %s: %s", m.ID, ErrAborted, m.FailedStage, m.Error)
	}
	return fmt.Errorf("move %s: %w", m.ID, ErrCommitted)
}

// SetMoveStage records the stage that was begun. It is for people and for
// explanations; the move's State is what decides. A move that was aborted
// refuses it (ErrAborted).
func (d *Directory) SetMoveStage(ctx context.Context, id string, stage pod.Stage) error {
	return d.updateMove(ctx, id, "recording stage "+string(stage), func(m *pod.Move) error {
		if m.State == pod.MoveAborted {
			return decided(m)
		}
		if m.State == pod.MoveRunning || m.State == pod.MoveCommitted {
			m.Stage = stage
		}
		return nil
	})
}

// SetHeld asks the proxy, by way of its watch, to queue the pod's packets or to
// stop doing so. Only a running move can be held.
func (d *Directory) SetHeld(ctx context.Context, id string, held bool) error {
	return d.updateMove(ctx, id, "recording the hold", func(m *pod.Move) error {
		if err := decided(m); err != nil {
			return err
		}
		if m.State == pod.MoveQueued {
			return fmt.Errorf("%w: move %s has not begun", pod.ErrConflict, id)
		}
		m.Held = held
		return nil
	})
}

// updateMove changes the journal entry alone.
func (d *Directory) updateMove(ctx context.Context, id, what string, change func(*pod.Move) error) error {
	key := movePrefix + id
	return d.retry(ctx, fmt.Sprintf("%s of move %s", what, id), func(ctx context.Context) error {
		kvs, err := d.read(ctx, key)
		if err != nil {
			return err
		}
		m, err := decodeMove(id, kvs[0])
		if err != nil {
			return err
		}
		before := string(encode(m))
		if err := change(m); err != nil {
			return err
		}
		if string(encode(m)) == before {
			return nil
		}
		return d.write(ctx, one(unchanged(key, kvs[0])), put(key, m))
	})
}

func decodeMove(id string, kv *mvccpb.KeyValue) (*pod.Move, error) {
	if kv == nil {
		return nil, fmt.Errorf("move %q: %w", id, pod.ErrNotFound)
	}
	return decode[pod.Move](kv)
}

// FinishMove closes a committed move, with what it measured: the source has no
// memory of the pod any more. Asking again changes nothing. An error wraps ErrAborted, or pod.ErrConflict if the move has
// yet to be committed.
func (d *Directory) FinishMove(ctx context.Context, id string, receipt *pod.Receipt) error {
	err := d.updateMove(ctx, id, "finishing", func(m *pod.Move) error {
		switch m.State {
		case pod.MoveAborted:
			return decided(m)
		case pod.MoveQueued, pod.MoveRunning:
			return fmt.Errorf("%w: move %s is not committed", pod.ErrConflict, id)
		case pod.MoveCommitted:
			m.State, m.Stage, m.Receipt, m.MemoryPending = pod.MoveDone, pod.StageRelease, receipt, false
			m.EndedAt = time.Now().UTC()
		}
		return nil
	})
	if err == nil {
		d.pruneMoves(ctx)
	}
	return err
}

// Move reads one journal entry. The error wraps pod.ErrNotFound.
func (d *Directory) Move(ctx context.Context, id string) (*pod.Move, error) {
	resp, err := d.get(ctx, "reading move "+id, movePrefix+id)
	if err != nil {
		return nil, err
	}
	if len(resp.Kvs) == 0 {
		return nil, fmt.Errorf("move %q: %w", id, pod.ErrNotFound)
	}
	return decode[pod.Move](resp.Kvs[0])
}

// Moves lists the journal, oldest first.
func (d *Directory) Moves(ctx context.Context) ([]*pod.Move, error) {
	bounded, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	moves, err := d.listMoves(bounded)
	if err != nil {
		return nil, d.explain(ctx, "listing moves", err)
	}
	return moves, nil
}

func (d *Directory) listMoves(ctx context.Context) ([]*pod.Move, error) {
	resp, err := d.etcd.Get(ctx, movePrefix, clientv3.WithPrefix(),
		clientv3.WithSort(clientv3.SortByCreateRevision, clientv3.SortAscend))
	if err != nil {
		return nil, err
	}
	moves := make([]*pod.Move, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		m, err := decode[pod.Move](kv)
		if err != nil {
			return nil, err
		}
		moves = append(moves, m)
	}
	return moves, nil
}

// pruneMoves keeps the journal bounded: the oldest finished moves go. The move
// just finished is safe whatever happens here, so a failure is only logged.
func (d *Directory) pruneMoves(ctx context.Context) {
	bounded, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	count, err := d.etcd.Get(bounded, movePrefix, clientv3.WithPrefix(), clientv3.WithCountOnly())
	if err == nil && count.Count <= int64(d.finishedMoves) {
		return
	}
	var moves []*pod.Move
	if err == nil {
		moves, err = d.listMoves(bounded)
	}
	moves = slices.DeleteFunc(moves, func(m *pod.Move) bool { return !finished(m) })
	for i := 0; err == nil && i < len(moves)-d.finishedMoves; i++ {
		_, err = d.etcd.Delete(bounded, movePrefix+moves[i].ID) // finished: nothing changes it any more
	}
	if err != nil {
		d.log.Warn("old moves were not removed from the journal", "error", d.explain(ctx, "pruning moves", err))
	}
}
