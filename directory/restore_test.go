package directory

import (
	"errors"
	"testing"

	"podd/pod"
)

// stop ends a pod, as a checkpoint does if it has an ID.
func stop(t *testing.T, d *Directory, name, checkpoint string) {
	t.Helper()
	err := d.UpdatePod(t.Context(), name, func(p *pod.Pod) error {
		p.Phase, p.Checkpoint, p.ExitCode = pod.PhaseStopped, checkpoint, 3
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// written is what a checkpoint file of a pod says.
func written(p *pod.Pod, checkpoint string) Restored {
	return Restored{Spec: p.Spec, Virtual: p.Binding.Virtual, Epoch: p.Binding.Epoch, TriedEpoch: p.TriedEpoch, CreatedAt: p.CreatedAt, Checkpoint: checkpoint}
}

func TestRestoreRemovedPod(t *testing.T) {
	d := newDirectory(t)
	p := create(t, d, "alice", "a")
	file := written(p, "file")
	file.TriedEpoch = 4
	if err := d.DeletePod(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	r, err := d.RestorePod(t.Context(), file, "b")
	if err != nil {
		t.Fatal(err)
	}
	if r.Binding.Virtual != p.Binding.Virtual || r.Binding.Public != p.Binding.Public || r.Binding.Host != "b" ||
		r.Binding.Label == p.Binding.Label || r.Binding.Epoch != 5 || r.Phase != pod.PhaseCreating || !r.CreatedAt.Equal(p.CreatedAt) {
		t.Errorf("restored %+v of %+v", r, p)
	}
	// The address is taken again.
	if other := create(t, d, "bob", "a"); other.Binding.Virtual == r.Binding.Virtual {
		t.Error("another pod has got the same address")
	}
	if err := d.UndoCreate(t.Context(), "alice", 4); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Pod(t.Context(), "alice"); err != nil {
		t.Errorf("another epoch's creation was undone: %v", err)
	}
	for range 2 {
		if err := d.UndoCreate(t.Context(), "alice", 5); err != nil {
			t.Fatal(err)
		}
	}
	_, err = d.Pod(t.Context(), "alice")
	wantErr(t, err, pod.ErrNotFound)
	_, err = d.StartRestored(t.Context(), "alice", 5)
	wantErr(t, err, pod.ErrNotFound)
	if _, err := d.RestorePod(t.Context(), file, "b"); err != nil {
		t.Errorf("restoring again: %v", err)
	}
}

func TestRestoreStoppedPod(t *testing.T) {
	d := newDirectory(t)
	p := create(t, d, "alice", "a")
	stop(t, d, "alice", "file")
	r, err := d.RestorePod(t.Context(), written(p, "file"), "b")
	if err != nil {
		t.Fatal(err)
	}
	if r.Continues == nil || r.Continues.Binding != p.Binding || r.Binding.Epoch != 2 || r.Binding.Host != "b" {
		t.Fatalf("the restored record is %+v", r)
	}
	if err := d.UndoCreate(t.Context(), "alice", 2); err != nil {
		t.Fatal(err)
	}
	back, err := d.Pod(t.Context(), "alice")
	if err != nil || back.Binding != p.Binding || back.Phase != pod.PhaseStopped || back.Continues != nil || back.Checkpoint != "file" || back.ExitCode != 3 {
		t.Fatalf("after the undo the record is %+v (%v)", back, err)
	}
	// What was tried is not given again.
	if r, err = d.RestorePod(t.Context(), written(p, "file"), "b"); err != nil || r.Binding.Epoch != 3 {
		t.Fatalf("restoring again: %+v, %v", r, err)
	}
	for range 2 {
		if r, err = d.StartRestored(t.Context(), "alice", 3); err != nil {
			t.Fatal(err)
		}
	}
	if r.Phase != pod.PhaseRunning || r.Continues != nil || r.Checkpoint != "" || r.StartedAt.IsZero() || r.ExitCode != 0 {
		t.Errorf("the running record is %+v", r)
	}
	if err := d.UndoCreate(t.Context(), "alice", 3); err != nil {
		t.Fatal(err)
	}
	if r, err = d.Pod(t.Context(), "alice"); err != nil || r.Phase != pod.PhaseRunning {
		t.Errorf("a running pod was undone: %+v, %v", r, err)
	}
}

func TestRestoreRefused(t *testing.T) {
	d := newDirectory(t)
	p := create(t, d, "alice", "a")
	file := written(p, "file")
	refused := func(what string, want error, words ...string) {
		t.Helper()
		_, err := d.RestorePod(t.Context(), file, "b")
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", what, err)
			return
		}
		wantErr(t, err, want, words...)
	}
	refused("a pod that is being created", pod.ErrConflict, "alice is creating on host a")
	if err := d.UpdatePod(t.Context(), "alice", func(p *pod.Pod) error { p.Phase = pod.PhaseRunning; return nil }); err != nil {
		t.Fatal(err)
	}
	refused("a pod that runs", pod.ErrConflict, "alice is running on host a")
	stop(t, d, "alice", "")
	refused("a pod that stopped by itself", pod.ErrConflict, "podctl rm alice")
	stop(t, d, "alice", "another file")
	refused("a pod that stopped with a later file", pod.ErrConflict, "went on after")

	// Restored from its file, and written again: the first file is an old one.
	second := written(p, "another file")
	if _, err := d.RestorePod(t.Context(), second, "b"); err != nil {
		t.Fatal(err)
	}
	refused("a pod that is being restored", pod.ErrConflict, "epoch 2")
	if _, err := d.StartRestored(t.Context(), "alice", 2); err != nil {
		t.Fatal(err)
	}
	stop(t, d, "alice", "third file")
	refused("an old file", pod.ErrConflict, "old one", "epoch 1", "epoch 2")

	// Somebody else has the name, or the address.
	if err := d.DeletePod(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	create(t, d, "alice", "a")
	refused("another pod of the name", pod.ErrExists)
	bob := create(t, d, "bob", "a")
	file.Spec.Name, file.Virtual = "carol", bob.Binding.Virtual
	refused("an address that is taken", pod.ErrConflict, "bob", bob.Binding.Virtual.String())
	file.Virtual = cluster.Public.Addr()
	refused("an address of nowhere", pod.ErrInvalid)
	file = written(p, "file")
	file.Spec.Name = "dave"
	_, err := d.RestorePod(t.Context(), file, "nowhere")
	wantErr(t, err, pod.ErrNotFound, "nowhere")
}

// A pod that was lost may go on from any file of its last incarnation.
func TestRestoreLostPod(t *testing.T) {
	d := newDirectory(t)
	p := create(t, d, "alice", "a")
	if err := d.UpdatePod(t.Context(), "alice", func(p *pod.Pod) error { p.Phase = pod.PhaseFailed; return nil }); err != nil {
		t.Fatal(err)
	}
	if _, err := d.RestorePod(t.Context(), written(p, "file"), "b"); err != nil {
		t.Error(err)
	}
	if err := d.UndoCreate(t.Context(), "alice", 2); err != nil {
		t.Fatal(err)
	}
	if back, err := d.Pod(t.Context(), "alice"); err != nil || back.Phase != pod.PhaseFailed {
		t.Errorf("after the undo it is %+v, %v", back, err)
	}
}
