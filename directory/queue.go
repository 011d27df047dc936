package directory

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"podd/pod"
)

// ErrQueued means that it is not a move's turn yet.
var ErrQueued = errors.New("the move has to wait")

// BeginMove opens the journal entry of a move, which is to carry the memory by the
// strategy. If both hosts have room for one
// more the move begins: it gets a label for the next incarnation, and the pod
// goes from PhaseRunning to PhaseMoving. Else it is queued and changes nothing
// for the pod; AwaitTurn begins it. The error wraps pod.ErrNotFound (no such pod
// or host), pod.ErrUnavailable (a host is down), pod.ErrInvalid (the pod is
// there already), pod.ErrPhase (it does not run) or pod.ErrConflict (another
// move has not finished; the text names it). When the directory itself is
// unavailable nobody knows whether the move was opened; the move returned beside
// that error has only the ID.
func (d *Directory) BeginMove(ctx context.Context, podName, target string, strategy pod.Strategy) (*pod.Move, error) {
	// The ID is ours alone, so after a lost reply it tells our move from
	// anybody else's. 10 base32 digits are 50 bits.
	id := strings.ToLower(rand.Text()[:10])
	m, err := d.enterMove(ctx, fmt.Sprintf("beginning the move of pod %s to host %s", podName, target), id, func(e *entry) error {
		if e.move != nil {
			return errAlready // the attempt whose reply was lost
		}
		switch {
		case e.pod == nil:
			return fmt.Errorf("pod %q: %w", podName, pod.ErrNotFound)
		case e.pod.Binding.Host == target:
			return fmt.Errorf("%w: pod %s is on host %s already", pod.ErrInvalid, podName, target)
		}
		if _, ok := e.view.Hosts[target]; !ok {
			return fmt.Errorf("host %q: %w", target, pod.ErrNotFound)
		}
		e.allocator.Moves++
		e.move = &pod.Move{
			ID: id, Pod: podName, Source: e.pod.Binding.Host, Target: target, SourceEpoch: e.pod.Binding.Epoch,
			State: pod.MoveQueued, Stage: pod.StageQueued, Strategy: strategy, Turn: e.allocator.Moves, StartedAt: time.Now().UTC(),
		}
		if err := e.check(); err != nil {
			return err
		}
		if !e.view.turn(e.move) {
			return nil
		}
		return d.start(ctx, e)
	}, podName)
	if errors.Is(err, pod.ErrUnavailable) {
		return &pod.Move{ID: id, Pod: podName}, err
	}
	return m, err
}

// AwaitTurn waits until StartMove may begin a queued move, or has begun it. The
// error wraps ErrAborted if it was cancelled meanwhile, or pod.ErrUnavailable if
// it is its turn and the target is down.
func (d *Directory) AwaitTurn(ctx context.Context, id string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for v := range d.Watch(ctx) {
		m := v.Moves[id]
		switch {
		case m == nil:
			return fmt.Errorf("move %q: %w", id, pod.ErrNotFound)
		case m.State != pod.MoveQueued:
			return decided(m)
		case !v.turn(m):
		case !v.Hosts[m.Target].Alive:
			return fmt.Errorf("%w: host %s is down", pod.ErrUnavailable, m.Target)
		default:
			return nil
		}
	}
	return context.Cause(ctx)
}

// StartMove begins a queued move and returns it as it is then; asking again
// changes nothing. The error wraps ErrQueued if it is not its turn after all,
// ErrAborted if it was cancelled, or is one of BeginMove's.
func (d *Directory) StartMove(ctx context.Context, id string) (*pod.Move, error) {
	queued, err := d.Move(ctx, id)
	if err != nil {
		return nil, err
	}
	return d.enterMove(ctx, "beginning the queued move "+id, id, func(e *entry) error {
		switch {
		case e.move == nil:
			return fmt.Errorf("move %q: %w", id, pod.ErrNotFound)
		case e.move.State == pod.MoveRunning:
			return errAlready
		case e.move.State != pod.MoveQueued:
			return decided(e.move)
		case e.pod == nil:
			return fmt.Errorf("pod %q: %w", queued.Pod, pod.ErrNotFound)
		case e.pod.Binding.Host != e.move.Source || e.pod.Binding.Epoch != e.move.SourceEpoch:
			return fmt.Errorf("%w: pod %s is another one than when move %s was asked for", pod.ErrConflict, queued.Pod, id)
		}
		if err := e.check(); err != nil {
			return err
		}
		if !e.view.turn(e.move) {
			return ErrQueued
		}
		return d.start(ctx, e)
	}, queued.Pod)
}

// entry is everything that decides whether a move may begin.
type entry struct {
	move      *pod.Move // nil if there is none
	pod       *pod.Pod  // nil if there is none
	allocator *allocator
	// view has the hosts and the moves, and is not older than the rest.
	view *View
}

// enterMove lets change open or begin a move, and stores what it has changed.
// All of that goes through the allocator, so that two moves can't both find the
// last place of a host free.
func (d *Directory) enterMove(ctx context.Context, what, id string, change func(*entry) error, podName string) (*pod.Move, error) {
	unlock, err := d.lockAllocator(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	var move *pod.Move
	podKey, moveKey := podPrefix+podName, movePrefix+id
	err = d.retry(ctx, what, func(ctx context.Context) error {
		kvs, err := d.read(ctx, podKey, moveKey, allocatorKey)
		if err != nil {
			return err
		}
		s, err := d.list(ctx, movePrefix, hostPrefix, hostAlive)
		if err != nil {
			return err
		}
		e := &entry{view: s.view()}
		if e.pod, err = decodeIfAny[pod.Pod](kvs[0]); err != nil {
			return err
		}
		if e.move, err = decodeIfAny[pod.Move](kvs[1]); err != nil {
			return err
		}
		if e.allocator, err = decodeAllocator(kvs[2]); err != nil {
			return err
		}
		err = change(e)
		move = e.move
		if errors.Is(err, errAlready) {
			return nil
		}
		if err != nil {
			return err
		}
		changes := []clientv3.Op{put(moveKey, e.move), put(allocatorKey, e.allocator)}
		if e.move.State == pod.MoveRunning {
			changes = append(changes, put(podKey, e.pod))
		}
		return d.write(ctx, []clientv3.Cmp{
			exists(hostAlive + e.move.Source), exists(hostAlive + e.move.Target),
			unchanged(podKey, kvs[0]), unchanged(moveKey, kvs[1]), unchanged(allocatorKey, kvs[2]),
		}, changes...)
	})
	if err != nil {
		return nil, err
	}
	return move, nil
}

func decodeIfAny[T any](kv *mvccpb.KeyValue) (*T, error) {
	if kv == nil {
		return nil, nil
	}
	return decode[T](kv)
}

// check refuses a move that can't begin, now or later.
func (e *entry) check() error {
	m, p := e.move, e.pod
	for _, other := range e.view.Moves {
		switch {
		case other.ID == m.ID || other.Pod != m.Pod:
		case other.State == pod.MoveQueued || other.State == pod.MoveRunning || other.Undoing():
			return fmt.Errorf("%w: pod %s is being moved already (move %s)", pod.ErrConflict, m.Pod, other.ID)
		case other.MemoryPending:
			return fmt.Errorf("%w: %w", pod.ErrConflict, &ArrivingError{other})
		case other.State == pod.MoveCommitted && other.Source == m.Target:
			// Two incarnations would share the pod's directories.
			return fmt.Errorf("%w: host %s is still cleaning up after move %s of pod %s", pod.ErrConflict, m.Target, other.ID, m.Pod)
		}
	}
	switch {
	case p.Move != "":
		return fmt.Errorf("%w: pod %s is being moved already (move %s)", pod.ErrConflict, m.Pod, p.Move)
	case p.Phase != pod.PhaseRunning:
		return fmt.Errorf("%w: pod %s is %s; only a running pod can be moved", pod.ErrPhase, m.Pod, p.Phase)
	case !e.view.Hosts[m.Target].Alive:
		return fmt.Errorf("%w: host %s is down", pod.ErrUnavailable, m.Target)
	case !e.view.Hosts[m.Source].Alive:
		return fmt.Errorf("%w: host %s, where pod %s is, is down", pod.ErrUnavailable, m.Source, m.Pod)
	}
	return nil
}

// start makes a queued move a running one.
func (d *Directory) start(ctx context.Context, e *entry) error {
	label, err := d.label(ctx, e.allocator)
	if err != nil {
		return err
	}
	m, p := e.move, e.pod
	m.State, m.Stage = pod.MoveRunning, pod.StagePreflight
	m.Next = p.Binding
	m.Next.Host, m.Next.Physical = m.Target, e.view.Hosts[m.Target].Physical
	// Above every epoch that was ever tried: what an aborted move has left
	// on a host is never taken for a later one's.
	p.TriedEpoch = max(p.TriedEpoch, p.Binding.Epoch) + 1
	m.Next.Label, m.Next.Epoch = label, p.TriedEpoch
	p.Phase, p.Move = pod.PhaseMoving, m.ID
	return nil
}

// turn reports whether both hosts of a queued move have room for it and no
// earlier one waits for either. The first one in the queue waits only for moves
// that have begun, and those never wait for a place: so nobody waits for ever.
// Moves of a source that is down do not count. It undoes them when it is back.
func (v *View) turn(m *pod.Move) bool {
	busy := map[string]int{}
	for _, other := range v.Moves {
		if other.ID == m.ID || !v.Hosts[other.Source].Alive {
			continue
		}
		switch {
		case other.State == pod.MoveRunning || other.Undoing():
			busy[other.Source]++
			busy[other.Target]++
		case other.State == pod.MoveQueued && other.Turn < m.Turn:
			for _, host := range []string{other.Source, other.Target} {
				if host == m.Source || host == m.Target {
					return false
				}
			}
		}
	}
	return busy[m.Source] < v.Hosts[m.Source].MoveLimit() && busy[m.Target] < v.Hosts[m.Target].MoveLimit()
}
