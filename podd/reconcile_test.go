package podd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"podd/namespace"
	"podd/pod"
)

// has makes an incarnation's record on d, as Prepare does, and returns the
// container.
func has(t *testing.T, d *Daemon, name string, epoch pod.Epoch, label pod.Label) *namespace.Container {
	t.Helper()
	dir := filepath.Join(d.StateDir, "pods", namespace.ID(name, epoch))
	if err := os.MkdirAll(filepath.Join(dir, "upper"), 0o700); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf(`{"config":{"spec":{"name":%q},"epoch":%d,"label":%d}}`, name, epoch, label)
	if err := os.WriteFile(filepath.Join(dir, "container.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := d.runtime.Load(name, epoch)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestPlan has one host be asked what it has to do about pod alice.
func TestPlan(t *testing.T) {
	d := newDaemon(t, "a", nil)
	here := pod.Binding{Host: "a", Label: 7, Epoch: 3}
	record := func(phase pod.Phase, change ...func(*pod.Pod)) *pod.Pod {
		p := &pod.Pod{Spec: pod.Spec{Name: "alice"}, Binding: here, Phase: phase}
		for _, f := range change {
			f(p)
		}
		return p
	}
	moving := func(p *pod.Pod) { p.Move = "xyz" }
	removed := func(p *pod.Pod) { p.Spec.RemoveOnExit = true }
	elsewhere := func(p *pod.Pod) { p.Binding.Host, p.Binding.Epoch, p.Binding.Label = "b", 4, 8 }
	written := func(p *pod.Pod) { p.Checkpoint = "file" }
	continues := func(p *pod.Pod) { p.Continues = &pod.Ended{Binding: here, Phase: pod.PhaseStopped} }
	anew := func(p *pod.Pod) { p.Binding.Label = 9 }
	tracked := &localPod{name: "alice", epoch: 3, container: has(t, d, "alice", 3, 7), gone: make(chan struct{})}
	given := &localPod{name: "alice", epoch: 3, container: has(t, d, "alice", 3, 7), gone: make(chan struct{})}
	given.memory.Store(&arriving{})
	all, files := remains{true, true, true}, remains{files: true}
	images := func(kinds ...imagesKind) (dirs []imagesDir) {
		for _, kind := range kinds {
			dirs = append(dirs, imagesDir{path: string(kind), kind: kind, of: incarnation{"alice", 3}})
		}
		return dirs
	}
	type found = map[pod.Epoch]remains
	for name, test := range map[string]struct {
		record *pod.Pod
		local  local
		want   []driftKind
	}{
		"nothing":                    {nil, local{}, nil},
		"of another host":            {record(pod.PhaseRunning, elsewhere), local{}, nil},
		"in order":                   {record(pod.PhaseRunning), local{found: found{3: all}, tracked: tracked}, nil},
		"stopped, in order":          {record(pod.PhaseStopped), local{found: found{3: files}}, nil},
		"failed, in order":           {record(pod.PhaseFailed), local{}, nil},
		"not looked after":           {record(pod.PhaseRunning), local{found: found{3: all}}, []driftKind{driftUntracked}},
		"lost with all files":        {record(pod.PhaseRunning), local{}, []driftKind{driftUntracked}},
		"half made":                  {record(pod.PhaseCreating), local{found: found{3: files}}, []driftKind{driftUntracked}},
		"removed on exit":            {record(pod.PhaseStopped, removed), local{found: found{3: files}}, []driftKind{driftUntracked}},
		"written into a file":        {record(pod.PhaseStopped, removed, written), local{found: found{3: files}}, nil},
		"restored elsewhere":         {record(pod.PhaseCreating, elsewhere, continues), local{found: found{2: files, 3: files}}, []driftKind{driftContainer}},
		"moved by nobody":            {record(pod.PhaseMoving, moving), local{found: found{3: all}, tracked: tracked}, []driftKind{driftMove}},
		"moved by nobody, untracked": {record(pod.PhaseMoving, moving), local{found: found{3: all}}, []driftKind{driftMove, driftUntracked}},
		"frozen":                     {record(pod.PhaseRunning), local{found: found{3: all}, tracked: tracked, frozen: true, blocked: true}, []driftKind{driftFrozen}},
		"blocked":                    {record(pod.PhaseRunning), local{found: found{3: all}, tracked: tracked, blocked: true}, []driftKind{driftBlocked}},
		"moved away":                 {record(pod.PhaseRunning, elsewhere), local{found: found{3: all}, tracked: tracked, frozen: true}, []driftKind{driftSuperseded}},
		"removed by somebody":        {nil, local{found: found{3: all}, tracked: tracked}, []driftKind{driftSuperseded}},
		"made anew with this name":   {record(pod.PhaseRunning, anew), local{found: found{3: all}, tracked: tracked}, []driftKind{driftSuperseded}},
		"old epochs": {record(pod.PhaseRunning), local{found: found{1: files, 2: all, 3: all, 5: {network: true}}, tracked: tracked},
			[]driftKind{driftContainer, driftContainer, driftNetwork}},
		"nobody's":          {nil, local{found: found{1: all}}, []driftKind{driftContainer}},
		"another host's":    {record(pod.PhaseRunning, elsewhere), local{found: found{3: all}}, []driftKind{driftContainer}},
		"stopped with more": {record(pod.PhaseStopped), local{found: found{3: all}}, []driftKind{driftContainer}},
		"images to restore from": {record(pod.PhaseRunning), local{found: found{3: all}, images: images(targetImages, usedImages)},
			[]driftKind{driftUntracked, driftImages}},
		"images of a running pod": {record(pod.PhaseRunning), local{found: found{3: all}, tracked: tracked, images: images(targetImages)}, []driftKind{driftImages}},
		"images of a dump":        {record(pod.PhaseRunning), local{found: found{3: all}, tracked: tracked, images: images(sourceImages)}, []driftKind{driftImages}},
		"images of an ended pod":  {record(pod.PhaseStopped), local{found: found{3: files}, images: images(targetImages)}, []driftKind{driftImages}},
		"kept for its memory":     {record(pod.PhaseRunning, elsewhere), local{found: found{1: files, 3: all}, kept: 3}, []driftKind{driftContainer}},
		"kept, and back again":    {record(pod.PhaseRunning), local{found: found{2: all, 3: all}, kept: 2, tracked: tracked}, nil},
		"given memory":            {record(pod.PhaseRunning), local{found: found{3: all}, tracked: given, images: images(memoryImages)}, nil},
		"to be given memory":      {record(pod.PhaseRunning), local{found: found{3: all}, images: images(memoryImages)}, []driftKind{driftUntracked}},
		"a pager without a pod":   {record(pod.PhaseRunning, elsewhere), local{images: images(memoryImages)}, []driftKind{driftImages}},
		"a pager that is done":    {record(pod.PhaseRunning), local{found: found{3: all}, tracked: tracked, images: images(memoryImages)}, []driftKind{driftImages}},
	} {
		var got []driftKind
		for _, s := range plan("a", test.record, test.local) {
			got = append(got, s.kind)
			if s.what == "" {
				t.Errorf("%s: step %s does not say what", name, s.kind)
			}
		}
		if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: the plan is %v, want %v", name, got, test.want)
		}
	}
}

// TestLook finds what a host has by the names alone.
func TestLook(t *testing.T) {
	d := newDaemon(t, "a", nil)
	has(t, d, "alice", 3, 7)
	for _, path := range []string{
		d.netnsPath("alice", 2), d.netnsPath("my-pod", 1), filepath.Join(d.netnsDir(), "other"),
		filepath.Join(d.imagesDir(), "unknown"),
	} {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{
		d.imagesOf(targetImages, "my-pod", 4), filepath.Join(d.RunDir, "containers", "alice.2"), filepath.Join(d.RunDir, "libcontainer", "bob.1"),
	} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	got, err := d.look()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]local{
		"alice": {found: map[pod.Epoch]remains{2: {files: true, live: true, network: true}, 3: {files: true}}},
		"bob":   {found: map[pod.Epoch]remains{1: {files: true, live: true}}},
		"my-pod": {
			found:  map[pod.Epoch]remains{1: {network: true}},
			images: []imagesDir{{d.imagesOf(targetImages, "my-pod", 4), targetImages, incarnation{"my-pod", 4}}},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("found %+v, want %+v", got, want)
	}
}

// TestReconcileImages removes what nobody needs, and spares what an operation
// has claimed or a pod may have to be restored from.
func TestReconcileImages(t *testing.T) {
	dir := newDirectory(t)
	move := beginMove(t, dir, "alice")
	if err := dir.CommitMove(t.Context(), move.ID); err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, "b", dir)
	d.engineErr = errors.New("there is no CRIU")
	has(t, d, "alice", move.Next.Epoch, move.Next.Label)
	needed, building := d.imagesOf(targetImages, "alice", move.Next.Epoch), d.imagesOf(targetImages, "bob", 2)
	others := []string{d.imagesOf(usedImages, "alice", move.Next.Epoch), d.imagesOf(targetImages, "alice", 9), d.imagesOf(sourceImages, "alice", 1)}
	for _, path := range append(others, needed, building) {
		if err := os.MkdirAll(filepath.Join(path, "work"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	left := func(want ...string) {
		t.Helper()
		slices.Sort(want)
		got, err := filepath.Glob(filepath.Join(d.imagesDir(), "*"))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("left are %v (%v), want %v", got, err, want)
		}
	}
	release, err := d.claim(t.Context(), "bob")
	if err != nil {
		t.Fatal(err)
	}
	// The pod can't be restored: its images are kept as long as that is so.
	for range 2 {
		if again, err := d.reconcile(t.Context(), false); err != nil || !again {
			t.Errorf("a look that can't restore the pod says %v, %v", again, err)
		}
	}
	report := d.driftReport()
	if last := report.recent[len(report.recent)-1]; !errors.Is(last.err, d.engineErr) || last.pod != "alice" {
		t.Errorf("reported last: %+v", last)
	}
	if report.failed[driftUntracked] != 2 || report.passes != 2 || report.last.IsZero() || report.err != nil {
		t.Errorf("the report is %+v", report)
	}
	left(append(others, needed, building)...) // nothing, before the pod is settled
	if err := dir.UpdatePod(t.Context(), "alice", func(p *pod.Pod) error { p.Phase = pod.PhaseStopped; return nil }); err != nil {
		t.Fatal(err)
	}
	if again, err := d.reconcile(t.Context(), false); err != nil || again {
		t.Errorf("a look that settles everything says %v, %v", again, err)
	}
	left(building)
	release()
	if again, err := d.reconcile(t.Context(), false); err != nil || again {
		t.Errorf("a look after the operation says %v, %v", again, err)
	}
	left()
	if report := d.driftReport(); report.repaired[driftImages] != 5 || report.recent[len(report.recent)-1].pod != "bob" {
		t.Errorf("the report is %+v", report)
	}
}

// TestRewoundDirectory has a podd distrust a directory that has lost its past.
func TestRewoundDirectory(t *testing.T) {
	dir := newDirectory(t)
	beginMove(t, dir, "alice")
	d := newDaemon(t, "c", dir)
	if _, err := d.reconcile(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	images := d.imagesOf(sourceImages, "alice", 1)
	if err := os.MkdirAll(images, 0o700); err != nil {
		t.Fatal(err)
	}
	d.dir.Directory = newDirectory(t)
	if _, err := d.reconcile(t.Context(), false); !errors.Is(err, errRewound) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(images); err != nil {
		t.Errorf("it was removed all the same: %v", err)
	}
}
