package directory

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"podd/pod"
)

// finished reports whether nothing remains to be done for the move.
func finished(m *pod.Move) bool {
	return m.State == pod.MoveDone || m.State == pod.MoveAborted
}

// decided is the error that tells how a move that is not running was decided.
func decided(m *pod.Move) error {
	switch m.State {
	case pod.MoveRunning:
		return nil
	case pod.MoveAborted:
		return fmt.Errorf("move %s: %w at stage %s: %s", m.ID, ErrAborted, m.FailedStage, m.Error)
	}
	return fmt.Errorf("move %s: %w", m.ID, ErrCommitted)
}

// BeginMove opens the journal entry of a move and takes a label for the next
// incarnation; the pod goes from PhaseRunning to PhaseMoving. The error wraps
// pod.ErrNotFound (no such pod or host), pod.ErrUnavailable (a host is down),
// pod.ErrInvalid (the pod is there already), pod.ErrPhase (it does not run) or
// pod.ErrConflict (another move has not finished; the text names it).
func (d *Directory) BeginMove(ctx context.Context, podName, target string) (*pod.Move, error) {
	unlock, err := d.lockAllocator(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()

	var move *pod.Move
	// The ID is ours alone, so after a lost reply it tells our move from
	// anybody else's. 10 base32 digits are 50 bits.
	id := strings.ToLower(rand.Text()[:10])
	podKey, moveKey := podPrefix+podName, movePrefix+id
	err = d.retry(ctx, fmt.Sprintf("beginning the move of pod %s to host %s", podName, target), func(ctx context.Context) error {
		kvs, err := d.read(ctx, podKey, moveKey, allocatorKey, hostPrefix+target, hostAlive+target)
		if err != nil {
			return err
		}
		if kvs[1] != nil { // the attempt whose reply was lost
			move, err = decode[pod.Move](kvs[1])
			return err
		}
		if kvs[0] == nil {
			return fmt.Errorf("pod %q: %w", podName, pod.ErrNotFound)
		}
		if kvs[3] == nil {
			return fmt.Errorf("host %q: %w", target, pod.ErrNotFound)
		}
		p, err := decode[pod.Pod](kvs[0])
		if err != nil {
			return err
		}
		h, err := decode[pod.Host](kvs[3])
		if err != nil {
			return err
		}
		source := p.Binding.Host
		switch {
		case p.Move != "":
			return fmt.Errorf("%w: pod %s is being moved already (move %s)", pod.ErrConflict, podName, p.Move)
		case source == target:
			return fmt.Errorf("%w: pod %s is on host %s already", pod.ErrInvalid, podName, target)
		case p.Phase != pod.PhaseRunning:
			return fmt.Errorf("%w: pod %s is %s; only a running pod can be moved", pod.ErrPhase, podName, p.Phase)
		case kvs[4] == nil:
			return fmt.Errorf("%w: host %s is down", pod.ErrUnavailable, target)
		}
		if err := d.checkClean(ctx, podName, target); err != nil {
			return err
		}
		a, err := decodeAllocator(kvs[2])
		if err != nil {
			return err
		}
		label, err := d.label(ctx, a)
		if err != nil {
			return err
		}
		m := &pod.Move{
			ID: id, Pod: podName, Source: source, Target: target,
			SourceEpoch: p.Binding.Epoch,
			Next:        p.Binding,
			State:       pod.MoveRunning,
			Stage:       pod.StagePreflight,
			StartedAt:   time.Now().UTC(),
		}
		m.Next.Host, m.Next.Physical = target, h.Physical
		// Above every epoch that was ever tried: what an aborted move has left
		// on a host is never taken for a later one's.
		p.TriedEpoch = max(p.TriedEpoch, p.Binding.Epoch) + 1
		m.Next.Label, m.Next.Epoch = label, p.TriedEpoch
		p.Phase, p.Move = pod.PhaseMoving, id

		alive := []clientv3.Cmp{exists(hostAlive + source), exists(hostAlive + target)}
		resp, err := d.etcd.Txn(ctx).
			If(append(alive, unchanged(podKey, kvs[0]), unchanged(moveKey, nil), unchanged(allocatorKey, kvs[2]))...).
			Then(put(podKey, p), put(moveKey, m), put(allocatorKey, a)).
			Else(clientv3.OpGet(hostAlive+source, clientv3.WithCountOnly())).
			Commit()
		if err != nil {
			return err
		}
		if !resp.Succeeded {
			if resp.Responses[0].GetResponseRange().Count == 0 {
				return fmt.Errorf("%w: host %s, where pod %s is, is down", pod.ErrUnavailable, source, podName)
			}
			return errLost
		}
		move = m
		return nil
	})
	if err != nil {
		return nil, err
	}
	return move, nil
}

// checkClean refuses a target that has yet to clean up after an earlier move of
// the same pod away from it: two incarnations would share its directories.
func (d *Directory) checkClean(ctx context.Context, podName, target string) error {
	moves, err := d.listMoves(ctx)
	if err != nil {
		return err
	}
	for _, m := range moves {
		if m.Pod == podName && m.Source == target && m.State == pod.MoveCommitted {
			return fmt.Errorf("%w: host %s is still cleaning up after move %s of pod %s", pod.ErrConflict, target, m.ID, podName)
		}
	}
	return nil
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

// FinishMove closes a committed move, with what it measured. Asking again
// changes nothing. An error wraps ErrAborted, or pod.ErrConflict if the move has
// yet to be committed.
func (d *Directory) FinishMove(ctx context.Context, id string, receipt *pod.Receipt) error {
	err := d.updateMove(ctx, id, "finishing", func(m *pod.Move) error {
		switch m.State {
		case pod.MoveAborted:
			return decided(m)
		case pod.MoveRunning:
			return fmt.Errorf("%w: move %s is not committed", pod.ErrConflict, id)
		case pod.MoveCommitted:
			m.State, m.Stage, m.Receipt = pod.MoveDone, pod.StageRelease, receipt
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
