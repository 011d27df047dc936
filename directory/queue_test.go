package directory

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"podd/pod"
)

// limited is a directory with the hosts a, b and c, alive, with room for so many
// moves each.
func limited(t *testing.T, moves int) *Directory {
	t.Helper()
	d := open(t, start(t))
	if err := d.InitCluster(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"a", "b", "c"} {
		h := host(name, i+1)
		h.MaxMoves = moves
		register(t, d, h)
	}
	return d
}

func wantState(t *testing.T, d *Directory, m *pod.Move, want pod.MoveState) {
	t.Helper()
	if now, err := d.Move(t.Context(), m.ID); err != nil || now.State != want {
		t.Errorf("the move of %s is %+v (%v), want it %s", m.Pod, now, err, want)
	}
}

func TestQueue(t *testing.T) {
	d := limited(t, 1)
	for _, name := range []string{"w", "x", "y", "z"} {
		running(t, d, name, "a")
	}
	first := begin(t, d, "w", "b")
	second := begin(t, d, "x", "c")
	if second.State != pod.MoveQueued || second.Stage != pod.StageQueued || second.Turn <= first.Turn || second.Next.Label != 0 {
		t.Errorf("the second move is %+v", second)
	}
	// It changes nothing for its pod, but no other move of it may begin.
	if p, err := d.Pod(t.Context(), "x"); err != nil || p.Phase != pod.PhaseRunning || p.Move != "" || p.TriedEpoch != 0 {
		t.Errorf("the pod is %+v, %v", p, err)
	}
	_, err := d.BeginMove(t.Context(), "x", "b", pod.StrategyAuto)
	wantErr(t, err, pod.ErrConflict, second.ID)
	_, err = d.StartMove(t.Context(), second.ID)
	wantErr(t, err, ErrQueued)
	wantErr(t, d.CommitMove(t.Context(), second.ID), pod.ErrConflict, "has not begun")
	wantErr(t, d.SetHeld(t.Context(), second.ID, true), pod.ErrConflict)
	wantErr(t, d.FinishMove(t.Context(), second.ID, nil), pod.ErrConflict)

	// In order, also when the next one is asked for while there is room.
	third := begin(t, d, "y", "b")
	if err := d.AbortMove(t.Context(), first.ID, pod.StageReserve, nil); err != nil {
		t.Fatal(err)
	}
	fourth := begin(t, d, "z", "b")
	for _, m := range []*pod.Move{third, fourth} {
		_, err := d.StartMove(t.Context(), m.ID)
		wantErr(t, err, ErrQueued)
	}
	if err := d.AwaitTurn(t.Context(), second.ID); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second as after a lost reply
		m, err := d.StartMove(t.Context(), second.ID)
		if err != nil || m.State != pod.MoveRunning || m.Next.Label == 0 || m.Next.Host != "c" || m.Next.Epoch != 2 {
			t.Fatalf("the move is %+v, %v", m, err)
		}
	}
	if p, err := d.Pod(t.Context(), "x"); err != nil || p.Phase != pod.PhaseMoving || p.Move != second.ID {
		t.Errorf("the pod is %+v, %v", p, err)
	}
	// A place is taken until the move is undone, not until that is decided.
	if err := d.CancelMove(t.Context(), second.ID, pod.StageDump, nil); err != nil {
		t.Fatal(err)
	}
	_, err = d.StartMove(t.Context(), third.ID)
	wantErr(t, err, ErrQueued)
	if err := d.AbortMove(t.Context(), second.ID, pod.StageDump, nil); err != nil {
		t.Fatal(err)
	}
	// Cancelling one that waits is all there is to do.
	if err := d.CancelMove(t.Context(), third.ID, pod.StageQueued, errors.New("not today")); err != nil {
		t.Fatal(err)
	}
	if m, err := d.Move(t.Context(), third.ID); err != nil || m.State != pod.MoveAborted || m.Undoing() || m.Error != "not today" {
		t.Errorf("the move is %+v, %v", m, err)
	}
	wantErr(t, d.AwaitTurn(t.Context(), third.ID), ErrAborted, "not today")
	_, err = d.StartMove(t.Context(), third.ID)
	wantErr(t, err, ErrAborted)
	if err := d.AwaitTurn(t.Context(), fourth.ID); err != nil {
		t.Error(err)
	}
}

// A move that waits for a busy host does not keep others from going by.
func TestQueuePerHost(t *testing.T) {
	d := limited(t, 1)
	running(t, d, "x", "a")
	running(t, d, "y", "b")
	h := host("d", 4)
	h.MaxMoves = 1
	register(t, d, h)
	running(t, d, "z", "c")
	begin(t, d, "x", "b")
	wantState(t, d, begin(t, d, "y", "c"), pod.MoveQueued)
	// c has room, but another waits for it that came before.
	wantState(t, d, begin(t, d, "z", "d"), pod.MoveQueued)
	running(t, d, "v", "d")
	e := host("e", 5)
	register(t, d, e)
	running(t, d, "u", "e")
	if m := begin(t, d, "u", "d"); m.State != pod.MoveQueued {
		t.Errorf("d is waited for, but the move to it is %s", m.State)
	}
	f := host("f", 6)
	register(t, d, f)
	running(t, d, "s", "f")
	register(t, d, host("g", 7))
	wantState(t, d, begin(t, d, "s", "g"), pod.MoveRunning)
}

// Hosts that are down keep nobody waiting: their moves are undone when they are
// back.
func TestQueueOfDeadHosts(t *testing.T) {
	d := limited(t, 1)
	h := host("dead", 9)
	h.MaxMoves = 1
	dead := register(t, d, h)
	running(t, d, "v", "dead")
	running(t, d, "w", "dead")
	running(t, d, "x", "a")
	running(t, d, "y", "c")
	begin(t, d, "v", "b")
	wantState(t, d, begin(t, d, "w", "b"), pod.MoveQueued)
	waiting := begin(t, d, "x", "b")
	wantState(t, d, waiting, pod.MoveQueued)
	turn := make(chan error, 1)
	go func() { turn <- d.AwaitTurn(t.Context(), waiting.ID) }()
	if err := dead.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-turn; err != nil {
		t.Fatal(err)
	}
	if _, err := d.StartMove(t.Context(), waiting.ID); err != nil {
		t.Fatal(err)
	}
	// One whose own target is down learns that when it is its turn.
	lost := begin(t, d, "y", "b")
	wantState(t, d, lost, pod.MoveQueued)
	_, err := d.BeginMove(t.Context(), "y", "dead", pod.StrategyAuto)
	wantErr(t, err, pod.ErrConflict, lost.ID)
}

// The pod may end, or be another one, when its turn comes.
func TestQueuedPodChanges(t *testing.T) {
	d := limited(t, 1)
	running(t, d, "x", "a")
	running(t, d, "y", "a")
	first, queued := begin(t, d, "x", "b"), begin(t, d, "y", "b")
	if err := d.UpdatePod(t.Context(), "y", func(p *pod.Pod) error { p.Phase = pod.PhaseStopped; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := d.AbortMove(t.Context(), first.ID, pod.StageReserve, nil); err != nil {
		t.Fatal(err)
	}
	_, err := d.StartMove(t.Context(), queued.ID)
	wantErr(t, err, pod.ErrPhase, "stopped")
	if err := d.DeletePod(t.Context(), "y"); err != nil {
		t.Fatal(err)
	}
	_, err = d.StartMove(t.Context(), queued.ID)
	wantErr(t, err, pod.ErrNotFound, "y")
	_, err = d.StartMove(t.Context(), "none")
	wantErr(t, err, pod.ErrNotFound)
	wantErr(t, d.AwaitTurn(t.Context(), "none"), pod.ErrNotFound)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, d.AwaitTurn(ctx, queued.ID), context.Canceled)
}

// TestFullHosts moves pods between two hosts in both directions, from two
// processes at once: never more go on than there is room for, and all get
// their turn.
func TestFullHosts(t *testing.T) {
	e := start(t)
	source, other := open(t, e), open(t, e)
	if err := source.InitCluster(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
	const limit = 2
	for i, name := range []string{"a", "b"} {
		h := host(name, i+1)
		h.MaxMoves = limit
		register(t, source, h)
	}
	var mu sync.Mutex
	busy, most := 0, 0
	count := func(n int) {
		mu.Lock()
		defer mu.Unlock()
		busy += n
		most = max(most, busy)
	}
	var wait sync.WaitGroup
	for i := range 12 {
		d, from, to := source, "a", "b"
		if i%2 == 1 {
			d, from, to = other, "b", "a"
		}
		name := fmt.Sprintf("p%d", i)
		running(t, d, name, from)
		wait.Go(func() {
			m, err := d.BeginMove(t.Context(), name, to, pod.StrategyAuto)
			for err == nil && m.State == pod.MoveQueued {
				if err = d.AwaitTurn(t.Context(), m.ID); err != nil {
					break
				}
				var started *pod.Move
				if started, err = d.StartMove(t.Context(), m.ID); errors.Is(err, ErrQueued) {
					err = nil
				} else if err == nil {
					m = started
				}
			}
			if err != nil {
				t.Error(err)
				return
			}
			count(1)
			if err := d.SetMoveStage(t.Context(), m.ID, pod.StagePresync); err != nil {
				t.Error(err)
			}
			count(-1)
			if err := d.CommitMove(t.Context(), m.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wait.Wait()
	if most > limit {
		t.Errorf("%d moves went on at once, want at most %d", most, limit)
	}
}

// TestCancelMove: the pod stays the move's until the source gives it back.
func TestCancelMove(t *testing.T) {
	d := newDirectory(t)
	running(t, d, "x", "a")
	m := begin(t, d, "x", "b")
	if err := d.SetHeld(t.Context(), m.ID, true); err != nil {
		t.Fatal(err)
	}
	for _, reason := range []string{"enough", "too late"} { // the first one counts
		if err := d.CancelMove(t.Context(), m.ID, pod.StageHold, errors.New(reason)); err != nil {
			t.Fatal(err)
		}
	}
	now, err := d.Move(t.Context(), m.ID)
	if err != nil || !now.Undoing() || !now.Held || now.Error != "enough" {
		t.Errorf("the move is %+v, %v", now, err)
	}
	if p, err := d.Pod(t.Context(), "x"); err != nil || p.Phase != pod.PhaseMoving || p.Move != m.ID {
		t.Errorf("the pod is %+v, %v", p, err)
	}
	wantErr(t, d.CommitMove(t.Context(), m.ID), ErrAborted, "enough")
	_, err = d.BeginMove(t.Context(), "x", "c", pod.StrategyAuto)
	wantErr(t, err, pod.ErrConflict, m.ID)
	for range 2 {
		if err := d.AbortMove(t.Context(), m.ID, pod.StageDump, errors.New("the connection was lost")); err != nil {
			t.Fatal(err)
		}
	}
	now, err = d.Move(t.Context(), m.ID)
	if err != nil || now.Undoing() || now.Held || now.Error != "enough" || now.FailedStage != pod.StageDump {
		t.Errorf("the move is %+v, %v", now, err)
	}
	if p, err := d.Pod(t.Context(), "x"); err != nil || p.Phase != pod.PhaseRunning || p.Move != "" {
		t.Errorf("the pod is %+v, %v", p, err)
	}
	committed := begin(t, d, "x", "b")
	if err := d.CommitMove(t.Context(), committed.ID); err != nil {
		t.Fatal(err)
	}
	wantErr(t, d.CancelMove(t.Context(), committed.ID, pod.StageHold, nil), ErrCommitted)
	wantErr(t, d.CancelMove(t.Context(), "none", pod.StageHold, nil), pod.ErrNotFound)
}

// TestUndoingIsKept: a journal that is cut short keeps what is not over.
func TestUndoingIsKept(t *testing.T) {
	d := newDirectory(t)
	d.finishedMoves = 0
	running(t, d, "x", "a")
	running(t, d, "y", "a")
	m := begin(t, d, "x", "b")
	if err := d.CancelMove(t.Context(), m.ID, pod.StageHold, nil); err != nil {
		t.Fatal(err)
	}
	if err := d.AbortMove(t.Context(), begin(t, d, "y", "b").ID, pod.StageHold, nil); err != nil {
		t.Fatal(err)
	}
	if moves, err := d.Moves(t.Context()); err != nil || len(moves) != 1 || moves[0].ID != m.ID {
		t.Errorf("the journal has %v, %v", moves, err)
	}
}

func TestWatchMove(t *testing.T) {
	d := newDirectory(t)
	running(t, d, "x", "a")
	for range d.WatchMove(t.Context(), "none") {
		t.Error("a move that is none")
	}
	m := begin(t, d, "x", "b")
	moves := d.WatchMove(t.Context(), m.ID)
	await := func(what string, is func(*pod.Move) bool) {
		t.Helper()
		for m := range moves {
			if is(m) {
				return
			}
		}
		t.Fatalf("the watch ended before %s", what)
	}
	await("the beginning", func(m *pod.Move) bool { return m.Stage == pod.StagePreflight })
	if err := d.SetMoveStage(t.Context(), m.ID, pod.StageHold); err != nil {
		t.Fatal(err)
	}
	await("the hold", func(m *pod.Move) bool { return m.Stage == pod.StageHold })
	if err := d.CancelMove(t.Context(), m.ID, pod.StageHold, nil); err != nil {
		t.Fatal(err)
	}
	await("the end", func(m *pod.Move) bool { return m.State == pod.MoveAborted })
	if _, err := d.etcd.Delete(t.Context(), movePrefix+m.ID); err != nil {
		t.Fatal(err)
	}
	for range moves { // ends, or the test times out
	}
	ctx, cancel := context.WithCancel(t.Context())
	running(t, d, "y", "a")
	again := d.WatchMove(ctx, begin(t, d, "y", "c").ID)
	<-again
	cancel()
	for range again {
	}
}
