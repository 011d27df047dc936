package directory

import (
	"errors"
	"testing"

	"podd/pod"
)

// TestMemoryPending: the memory of a post-copy move is pending from the commit
// until its target says that it has all, and the pod can't be moved meanwhile.
func TestMemoryPending(t *testing.T) {
	d := newDirectory(t)
	running(t, d, "x", "a")
	m := begin(t, d, "x", "b")
	arrival := pod.Arrival{Missing: 3<<20 + 1, Stalled: "host a does not answer"}
	wantErr(t, d.SetArrival(t.Context(), m.ID, arrival, true), pod.ErrConflict)
	if err := d.ChooseStrategy(t.Context(), m.ID, pod.StrategyPostCopy, "it was asked for"); err != nil {
		t.Fatal(err)
	}
	if err := d.CommitMove(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Move(t.Context(), m.ID); err != nil || !got.MemoryPending || got.Chosen != pod.StrategyPostCopy || got.Strategy != pod.StrategyAuto {
		t.Errorf("the move is %+v, %v", got, err)
	}
	wantErr(t, d.ChooseStrategy(t.Context(), m.ID, pod.StrategyPreCopy, ""), ErrCommitted)
	_, err := d.BeginMove(t.Context(), "x", "c", pod.StrategyAuto)
	wantErr(t, err, pod.ErrConflict, "the memory of pod x is still arriving (move "+m.ID+")")
	if err := d.SetArrival(t.Context(), m.ID, arrival, true); err != nil {
		t.Fatal(err)
	}
	_, err = d.BeginMove(t.Context(), "x", "c", pod.StrategyAuto)
	wantErr(t, err, pod.ErrConflict, "4 MiB left; it stands still: host a does not answer")
	var arriving *ArrivingError
	if !errors.As(err, &arriving) || arriving.Move.ID != m.ID {
		t.Errorf("the error is %#v", err)
	}

	if err := d.SetArrival(t.Context(), m.ID, pod.Arrival{Faults: 5}, false); err != nil {
		t.Fatal(err)
	}
	// Word of it that comes late changes nothing.
	if err := d.SetArrival(t.Context(), m.ID, pod.Arrival{Faults: 5}, true); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Move(t.Context(), m.ID); err != nil || got.MemoryPending || got.Arrival.Faults != 5 {
		t.Errorf("the move is %+v, %v", got, err)
	}
	begin(t, d, "x", "c")
}

// TestNothingPending: the source, too, knows when nothing is left, and a move that
// carries all before the commit leaves nothing.
func TestNothingPending(t *testing.T) {
	d := newDirectory(t)
	running(t, d, "x", "a")
	for i, strategy := range []pod.Strategy{pod.StrategyPostCopy, pod.StrategyPreCopy} {
		m := begin(t, d, "x", []string{"b", "c"}[i])
		if err := d.ChooseStrategy(t.Context(), m.ID, strategy, ""); err != nil {
			t.Fatal(err)
		}
		if err := d.CommitMove(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Move(t.Context(), m.ID); err != nil || got.MemoryPending != (strategy == pod.StrategyPostCopy) {
			t.Errorf("committed: %+v, %v", got, err)
		}
		if err := d.FinishMove(t.Context(), m.ID, nil); err != nil {
			t.Fatal(err)
		}
		if got, err := d.Move(t.Context(), m.ID); err != nil || got.MemoryPending {
			t.Errorf("finished: %+v, %v", got, err)
		}
	}
	m := begin(t, d, "x", "b")
	if err := d.AbortMove(t.Context(), m.ID, pod.StagePresync, errors.New("enough")); err != nil {
		t.Fatal(err)
	}
	wantErr(t, d.ChooseStrategy(t.Context(), m.ID, pod.StrategyPostCopy, ""), ErrAborted)
	wantErr(t, d.SetArrival(t.Context(), m.ID, pod.Arrival{}, false), pod.ErrConflict)
}

// TestRemoveLostSource: a host that is gone with memory that a pod needs is removed
// once the loss of the pod is admitted, and with it its moves are closed.
func TestRemoveLostSource(t *testing.T) {
	d := newDirectory(t)
	source := register(t, d, host("a", 1))
	register(t, d, host("b", 2))
	running(t, d, "x", "a")
	running(t, d, "whole", "a")
	lacking, whole := begin(t, d, "x", "b"), begin(t, d, "whole", "b")
	if err := d.ChooseStrategy(t.Context(), lacking.ID, pod.StrategyPostCopy, "it was asked for"); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*pod.Move{lacking, whole} {
		if err := d.CommitMove(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.SetArrival(t.Context(), lacking.ID, pod.Arrival{Missing: 5 << 20, Stalled: "host a does not answer"}, true); err != nil {
		t.Fatal(err)
	}
	if err := source.Close(); err != nil {
		t.Fatal(err)
	}
	wantErr(t, d.RemoveHost(t.Context(), "a"), pod.ErrConflict, "5 MiB left", "podctl rm --force x")
	if err := d.UpdatePod(t.Context(), "x", func(p *pod.Pod) error { p.Phase = pod.PhaseStopped; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := d.DeletePod(t.Context(), "x"); err != nil {
		t.Fatal(err)
	}
	if err := d.RemoveHost(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{lacking.ID, whole.ID} {
		m, err := d.Move(t.Context(), id)
		if err != nil || m.State != pod.MoveDone || m.MemoryPending || m.EndedAt.IsZero() || m.Error == "" {
			t.Errorf("the move is %+v, %v", m, err)
		}
	}
	begin(t, d, "whole", "c")
}
