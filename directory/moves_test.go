package directory

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"podd/pod"
)

func begin(t *testing.T, d *Directory, name, target string) *pod.Move {
	t.Helper()
	m, err := d.BeginMove(t.Context(), name, target, pod.StrategyAuto)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMoveCommitted(t *testing.T) {
	d := newDirectory(t)
	before := running(t, d, "x", "a")
	m := begin(t, d, "x", "b")
	next := before.Binding
	next.Host, next.Physical, next.Label, next.Epoch = "b", host("b", 2).Physical, 2, 2
	if m.Next != next || m.Source != "a" || m.Target != "b" || m.SourceEpoch != 1 || m.State != pod.MoveRunning {
		t.Errorf("move is %+v, want the next binding %+v", m, next)
	}
	if p, err := d.Pod(t.Context(), "x"); err != nil || p.Phase != pod.PhaseMoving || p.Move != m.ID || p.Binding != before.Binding {
		t.Errorf("the pod is %+v (%v), want it moving and still on a", p, err)
	}
	wantErr(t, d.DeletePod(t.Context(), "x"), pod.ErrConflict, m.ID)
	wantErr(t, d.FinishMove(t.Context(), m.ID, nil), pod.ErrConflict)

	if err := d.SetMoveStage(t.Context(), m.ID, pod.StageHold); err != nil {
		t.Fatal(err)
	}
	if err := d.SetHeld(t.Context(), m.ID, true); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second as after a lost reply
		if err := d.CommitMove(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	p, err := d.Pod(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if p.Binding != next || p.Phase != pod.PhaseRunning || p.Move != "" {
		t.Errorf("the pod is %+v, want it running at %+v", p, next)
	}
	wantErr(t, d.AbortMove(t.Context(), m.ID, pod.StageRestore, errors.New("late")), ErrCommitted)
	wantErr(t, d.SetHeld(t.Context(), m.ID, true), ErrCommitted)

	// a still has the old copy's files, c does not.
	_, err = d.BeginMove(t.Context(), "x", "a", pod.StrategyAuto)
	wantErr(t, err, pod.ErrConflict, m.ID)
	onward := begin(t, d, "x", "c")
	if err := d.AbortMove(t.Context(), onward.ID, pod.StagePreflight, nil); err != nil {
		t.Fatal(err)
	}

	receipt := &pod.Receipt{Freeze: 42, Connections: 3}
	for range 2 {
		if err := d.FinishMove(t.Context(), m.ID, receipt); err != nil {
			t.Fatal(err)
		}
	}
	done, err := d.Move(t.Context(), m.ID)
	if err != nil {
		t.Fatal(err)
	}
	if done.State != pod.MoveDone || done.Receipt == nil || done.Receipt.Freeze != 42 || done.EndedAt.IsZero() || done.Held {
		t.Errorf("the journal says %+v", done)
	}
	if err := d.CommitMove(t.Context(), m.ID); err != nil {
		t.Errorf("commit asked again after the end: %v", err)
	}
	wantErr(t, d.AbortMove(t.Context(), m.ID, pod.StageRestore, nil), ErrCommitted)
	begin(t, d, "x", "a")
}

func TestMoveAborted(t *testing.T) {
	d := newDirectory(t)
	before := running(t, d, "x", "a")
	m := begin(t, d, "x", "b")
	for range 2 {
		if err := d.AbortMove(t.Context(), m.ID, pod.StageDump, errors.New("no space left")); err != nil {
			t.Fatal(err)
		}
	}
	p, err := d.Pod(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if p.Binding != before.Binding || p.Phase != pod.PhaseRunning || p.Move != "" {
		t.Errorf("the pod is %+v, want it running as before", p)
	}
	wantErr(t, d.CommitMove(t.Context(), m.ID), ErrAborted, "dump", "no space left")
	wantErr(t, d.FinishMove(t.Context(), m.ID, nil), ErrAborted)
	wantErr(t, d.SetMoveStage(t.Context(), m.ID, pod.StageRestore), ErrAborted)
	wantErr(t, d.SetHeld(t.Context(), m.ID, true), ErrAborted)
	if again := begin(t, d, "x", "b"); again.Next.Label <= m.Next.Label {
		t.Errorf("label %s was used again", again.Next.Label)
	}
}

func TestBeginMoveRefused(t *testing.T) {
	d := newDirectory(t)
	running(t, d, "x", "a")
	create(t, d, "unborn", "a")
	down := register(t, d, host("down", 9))
	running(t, d, "orphan", "down")
	if err := down.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		pod, target string
		want        error
		says        string
	}{
		{"nobody", "b", pod.ErrNotFound, "nobody"},
		{"x", "nowhere", pod.ErrNotFound, "nowhere"},
		{"x", "a", pod.ErrInvalid, "already"},
		{"x", "down", pod.ErrUnavailable, "host down is down"},
		{"orphan", "b", pod.ErrUnavailable, "host down"},
		{"unborn", "b", pod.ErrPhase, "creating"},
	} {
		_, err := d.BeginMove(t.Context(), c.pod, c.target, pod.StrategyAuto)
		wantErr(t, err, c.want, c.says)
	}
	m := begin(t, d, "x", "b")
	_, err := d.BeginMove(t.Context(), "x", "c", pod.StrategyAuto)
	wantErr(t, err, pod.ErrConflict, m.ID)
	moves, err := d.Moves(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(moves) != 1 {
		t.Errorf("%d journal entries, want 1", len(moves))
	}
}

// TestCommitVersusAbort lets target and source decide at the same moment.
func TestCommitVersusAbort(t *testing.T) {
	e := start(t)
	source, target := open(t, e), open(t, e)
	if err := source.InitCluster(t.Context(), cluster); err != nil {
		t.Fatal(err)
	}
	register(t, source, host("a", 1))
	register(t, target, host("b", 2))
	const rounds = 150
	commits := 0
	for i := range rounds {
		name := fmt.Sprintf("p%d", i)
		before := running(t, source, name, "a")
		m := begin(t, source, name, "b")
		var committed, aborted error
		var wait sync.WaitGroup
		wait.Go(func() { committed = target.CommitMove(t.Context(), m.ID) })
		wait.Go(func() { aborted = source.AbortMove(t.Context(), m.ID, pod.StageRestore, errors.New("changed my mind")) })
		wait.Wait()

		p, err := source.Pod(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case committed == nil && errors.Is(aborted, ErrCommitted):
			commits++
			if p.Binding != m.Next {
				t.Errorf("committed, but the binding is %+v", p.Binding)
			}
		case aborted == nil && errors.Is(committed, ErrAborted):
			if p.Binding != before.Binding {
				t.Errorf("aborted, but the binding is %+v", p.Binding)
			}
		default:
			t.Errorf("commit says %v, abort says %v", committed, aborted)
		}
		if p.Phase != pod.PhaseRunning || p.Move != "" {
			t.Errorf("the pod is %s in move %q", p.Phase, p.Move)
		}
	}
	t.Logf("%d commits, %d aborts", commits, rounds-commits)
}

// TestCommitChecksEpoch commits a move of an incarnation that is no more.
func TestCommitChecksEpoch(t *testing.T) {
	d := newDirectory(t)
	running(t, d, "x", "a")
	m := begin(t, d, "x", "b")
	p, err := d.Pod(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	p.Binding.Epoch = 7
	if _, err := d.etcd.Put(t.Context(), podPrefix+"x", string(encode(p))); err != nil {
		t.Fatal(err)
	}
	wantErr(t, d.CommitMove(t.Context(), m.ID), pod.ErrConflict, "epoch 7")
	if err := d.AbortMove(t.Context(), m.ID, pod.StageCommit, nil); err != nil {
		t.Fatal(err)
	}
}

// TestPodEndsDuringMove: what the source says about the end of the pod stays.
func TestPodEndsDuringMove(t *testing.T) {
	d := newDirectory(t)
	running(t, d, "x", "a")
	m := begin(t, d, "x", "b")
	if err := d.UpdatePod(t.Context(), "x", func(p *pod.Pod) error { p.Phase = pod.PhaseStopped; return nil }); err != nil {
		t.Fatal(err)
	}
	wantErr(t, d.CommitMove(t.Context(), m.ID), pod.ErrPhase, "stopped")
	if err := d.AbortMove(t.Context(), m.ID, pod.StagePresync, errors.New("the pod ended")); err != nil {
		t.Fatal(err)
	}
	p, err := d.Pod(t.Context(), "x")
	if err != nil {
		t.Fatal(err)
	}
	if p.Phase != pod.PhaseStopped || p.Move != "" {
		t.Errorf("the pod is %s in move %q, want it stopped", p.Phase, p.Move)
	}
}

func TestJournalIsBounded(t *testing.T) {
	d := newDirectory(t)
	d.finishedMoves = 3
	running(t, d, "busy", "a")
	open := begin(t, d, "busy", "b") // the oldest, and not finished
	running(t, d, "x", "a")
	var ids []string
	for range 6 {
		m := begin(t, d, "x", "b")
		if err := d.AbortMove(t.Context(), m.ID, pod.StagePreflight, nil); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, m.ID)
	}
	moves, err := d.Moves(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range moves {
		got = append(got, m.ID)
	}
	if want := append([]string{open.ID}, ids[3:]...); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the journal has %v, want %v", got, want)
	}
}

func TestMoveUnknown(t *testing.T) {
	d := newDirectory(t)
	_, err := d.Move(t.Context(), "none")
	wantErr(t, err, pod.ErrNotFound)
	wantErr(t, d.CommitMove(t.Context(), "none"), pod.ErrNotFound)
	wantErr(t, d.AbortMove(t.Context(), "none", pod.StageDump, nil), pod.ErrNotFound)
	wantErr(t, d.SetHeld(t.Context(), "none", true), pod.ErrNotFound)
}

// TestReadAhead: what was read ahead decides if it still holds, and is read
// again if it does not.
func TestReadAhead(t *testing.T) {
	d := newDirectory(t)
	ctx := t.Context()
	for name, between := range map[string]func(t *testing.T, m *pod.Move){
		"unchanged": func(*testing.T, *pod.Move) {},
		"changed": func(t *testing.T, m *pod.Move) {
			if err := d.SetMoveStage(ctx, m.ID, pod.StageRestore); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			running(t, d, name, "a")
			m := begin(t, d, name, "b")
			if err := d.ReadAhead(ctx, m.ID); err != nil {
				t.Fatal(err)
			}
			between(t, m)
			if err := d.CommitMove(ctx, m.ID); err != nil {
				t.Fatal(err)
			}
			if p, err := d.Pod(ctx, name); err != nil || p.Binding.Host != "b" {
				t.Errorf("pod %+v, error %v", p, err)
			}
		})
	}
	t.Run("aborted", func(t *testing.T) {
		running(t, d, "aborted", "a")
		m := begin(t, d, "aborted", "b")
		if err := d.ReadAhead(ctx, m.ID); err != nil {
			t.Fatal(err)
		}
		other, err := Open(ctx, Options{Endpoints: d.etcd.Endpoints(), Log: testLog(t)})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if err := other.AbortMove(ctx, m.ID, pod.StageRestore, nil); err != nil {
			t.Fatal(err)
		}
		if err := d.CommitMove(ctx, m.ID); !errors.Is(err, ErrAborted) {
			t.Errorf("got %v, want ErrAborted", err)
		}
	})
}

// TestEpochsAreNotReused: what an aborted move has left on a host must not be
// taken for what a later one makes there.
func TestEpochsAreNotReused(t *testing.T) {
	d := newDirectory(t)
	ctx := t.Context()
	running(t, d, "alice", "a")
	var last pod.Epoch = 1
	for range 3 {
		m := begin(t, d, "alice", "b")
		if m.Next.Epoch <= last {
			t.Errorf("epoch %d after %d", m.Next.Epoch, last)
		}
		last = m.Next.Epoch
		if err := d.AbortMove(ctx, m.ID, pod.StageReserve, nil); err != nil {
			t.Fatal(err)
		}
	}
	m := begin(t, d, "alice", "b")
	if err := d.CommitMove(ctx, m.ID); err != nil {
		t.Fatal(err)
	}
	if p, err := d.Pod(ctx, "alice"); err != nil || p.Binding.Epoch <= last {
		t.Errorf("pod %+v, error %v; want an epoch above %d", p, err, last)
	}
}
