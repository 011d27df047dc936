package podd

import (
	"os"
	"testing"

	"podd/pod"
)

// TestTellMemories has a target restarted whose podd ended between a pod's having all
// its memory and the journal's knowing: the source would keep it for ever. A pod whose
// pager is at work is not spoken of.
func TestTellMemories(t *testing.T) {
	dir := newDirectory(t)
	commit := func(name string) *pod.Move {
		t.Helper()
		m := beginMove(t, dir, name)
		if err := dir.ChooseStrategy(t.Context(), m.ID, pod.StrategyPostCopy, "it was asked for"); err != nil {
			t.Fatal(err)
		}
		if err := dir.CommitMove(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
		if err := dir.SetArrival(t.Context(), m.ID, pod.Arrival{Missing: 1, Stalled: "test", Faults: 7}, true); err != nil {
			t.Fatal(err)
		}
		return m
	}
	complete, arriving := commit("complete"), commit("arriving")
	view, err := dir.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, "b", dir)
	if err := os.MkdirAll(d.imagesOf(memoryImages, arriving.Pod, arriving.Next.Epoch), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.tellMemories(view); err != nil {
		t.Fatal(err)
	}
	d.tasks.Wait()
	if now, err := dir.Move(t.Context(), complete.ID); err != nil || now.MemoryPending || *now.Arrival != (pod.Arrival{Faults: 7}) {
		t.Errorf("the move is %+v, %v", now, err)
	}
	if now, err := dir.Move(t.Context(), arriving.ID); err != nil || !now.MemoryPending {
		t.Errorf("the other move is %+v, %v", now, err)
	}
}
