package podd

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"podd/daemon"
	"podd/directory"
	"podd/namespace"
	"podd/pod"
)

// newDirectory is a directory with the hosts a and b, both alive.
func newDirectory(t *testing.T) *directory.Directory {
	t.Helper()
	e, err := directory.StartEmbedded(t.Context(), directory.EmbeddedOptions{DataDir: t.TempDir(), Listen: "127.0.0.1:0", Unsynced: true, Log: discard()})
	if err != nil {
		t.Fatal(err)
	}
	closeLater := func(close func() error) {
		t.Cleanup(func() {
			if err := close(); err != nil {
				t.Error(err)
			}
		})
	}
	closeLater(e.Close)
	d, err := directory.Open(t.Context(), directory.Options{Endpoints: []string{e.Endpoint()}, Log: discard()})
	if err != nil {
		t.Fatal(err)
	}
	closeLater(d.Close)
	err = d.InitCluster(t.Context(), directory.Cluster{
		Public: netip.MustParsePrefix("198.18.0.0/24"), Virtual: netip.MustParsePrefix("100.64.0.0/24"), Zone: "pods.internal",
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, name := range []string{"a", "b"} {
		address := netip.AddrFrom4([4]byte{10, 10, byte(i + 1), 2})
		r, err := d.RegisterHost(t.Context(), pod.Host{Name: name, Physical: address, API: netip.AddrPortFrom(address, DefaultPort)})
		if err != nil {
			t.Fatal(err)
		}
		closeLater(r.Close)
	}
	return d
}

// newDaemon is a podd that has directories, but no network and no CRIU.
func newDaemon(t *testing.T, host string, dir *directory.Directory) *Daemon {
	t.Helper()
	init, err := os.Executable() // any program
	if err != nil {
		t.Fatal(err)
	}
	config := Config{Name: host, StateDir: t.TempDir(), RunDir: t.TempDir(), CgroupParent: fmt.Sprintf("poddtest-podd-%d", os.Getpid())}
	d := &Daemon{settings: settings{Config: config}, log: discard(), dir: &daemon.Directory{Directory: dir}, ctx: t.Context(), pods: map[string]*localPod{}}
	d.runtime, err = namespace.Open(namespace.Options{StateDir: config.StateDir, RunDir: config.RunDir, CgroupParent: config.CgroupParent, InitPath: init, Log: d.log})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{d.netnsDir(), d.imagesDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// beginMove records a running pod on a that is being moved to b.
func beginMove(t *testing.T, d *directory.Directory, name string) *pod.Move {
	t.Helper()
	spec := pod.Spec{Name: name, Command: []string{"true"}}
	if err := spec.Validate(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.CreatePod(t.Context(), spec, "a"); err != nil {
		t.Fatal(err)
	}
	if err := d.UpdatePod(t.Context(), name, func(p *pod.Pod) error { p.Phase = pod.PhaseRunning; return nil }); err != nil {
		t.Fatal(err)
	}
	m, err := d.BeginMove(t.Context(), name, "b", pod.StrategyAuto)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// TestCommittedMeanwhile has a target commit a move while the restarted source is
// about to abort it: the source has to know it as one that it must close.
func TestCommittedMeanwhile(t *testing.T) {
	dir := newDirectory(t)
	d := newDaemon(t, "a", dir)
	m := beginMove(t, dir, "alice")
	view, err := dir.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.CommitMove(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	if view, err = d.decideMoves(t.Context(), view); err != nil {
		t.Fatal(err)
	}
	d.noteUnclosed(view)
	if unclosed := d.reconciler.unclosed; len(unclosed) != 1 || unclosed[0].ID != m.ID || unclosed[0].State != pod.MoveCommitted {
		t.Errorf("to be closed are %+v", unclosed)
	}
}

// TestAbortMoves has a restarted host find moves in every state there is. The
// commit decides: what is committed stays so.
func TestAbortMoves(t *testing.T) {
	dir := newDirectory(t)
	running, committed := beginMove(t, dir, "running"), beginMove(t, dir, "committed")
	if err := dir.CommitMove(t.Context(), committed.ID); err != nil {
		t.Fatal(err)
	}
	restart := func(host string) {
		t.Helper()
		view, err := dir.View(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		d := newDaemon(t, host, dir)
		if err := d.abortMoves(t.Context(), view); err != nil {
			t.Fatal(err)
		}
		d.noteUnclosed(view)
		if err := d.closeMoves(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	want := func(id string, state pod.MoveState, host string) {
		t.Helper()
		m, err := dir.Move(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		p, err := dir.Pod(t.Context(), m.Pod)
		if err != nil {
			t.Fatal(err)
		}
		if m.State != state || p.Binding.Host != host {
			t.Errorf("the move of %s is %s and the pod on %s, want %s and %s", m.Pod, m.State, p.Binding.Host, state, host)
		}
	}
	restart("c") // has no part in either
	want(running.ID, pod.MoveRunning, "a")
	want(committed.ID, pod.MoveCommitted, "b")
	restart("b")
	want(running.ID, pod.MoveAborted, "a")
	want(committed.ID, pod.MoveCommitted, "b")
	restart("a") // is the source, which alone knows when it is clean
	want(running.ID, pod.MoveAborted, "a")
	want(committed.ID, pod.MoveDone, "b")

	m, err := dir.Move(t.Context(), running.ID)
	if err != nil || !strings.Contains(m.Error, "host b") || !strings.Contains(m.Error, errRestarted.Error()) {
		t.Errorf("the journal says %q (%v), want that host b was restarted", m.Error, err)
	}
}

// TestCheckMoveRefuses asks for moves that can never succeed; none of these
// questions reaches a pod.
func TestCheckMoveRefuses(t *testing.T) {
	dir := newDirectory(t)
	moving := beginMove(t, dir, "moving")
	for name, phase := range map[string]pod.Phase{"fine": pod.PhaseRunning, "stopped": pod.PhaseStopped} {
		m := beginMove(t, dir, name)
		if err := dir.AbortMove(t.Context(), m.ID, pod.StageReserve, errors.New("for the test")); err != nil {
			t.Fatal(err)
		}
		if err := dir.UpdatePod(t.Context(), name, func(p *pod.Pod) error { p.Phase = phase; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	d := &Daemon{settings: settings{Config: Config{Name: "a"}}, log: discard(), dir: &daemon.Directory{Directory: dir}, engineErr: errors.New("there is no CRIU")}
	for name, test := range map[string]struct {
		pod, host string
		sentinel  error
		text      string
	}{
		"unknown pod":  {"nobody", "b", pod.ErrNotFound, "nobody"},
		"unknown host": {"fine", "z", pod.ErrNotFound, "z"},
		"same host":    {"fine", "a", pod.ErrInvalid, "is on host a already"},
		"stopped":      {"stopped", "b", pod.ErrPhase, "it is stopped"},
		"under way":    {"moving", "b", pod.ErrConflict, moving.ID},
		"no CRIU":      {"fine", "b", pod.ErrBlocked, "there is no CRIU"},
	} {
		if _, err := d.checkMove(t.Context(), moveOrder{pod: test.pod, target: test.host}); !errors.Is(err, test.sentinel) || !strings.Contains(err.Error(), test.text) {
			t.Errorf("%s: got %v, want %v with %q", name, err, test.sentinel, test.text)
		}
	}
}

// TestCloseMoves closes a move from here only when nothing is left of the pod.
func TestCloseMoves(t *testing.T) {
	dir := newDirectory(t)
	move := beginMove(t, dir, "alice")
	if err := dir.CommitMove(t.Context(), move.ID); err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, "a", dir)
	left := d.netnsPath(move.Pod, move.SourceEpoch)
	if err := os.WriteFile(left, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	view, err := dir.View(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	d.noteUnclosed(view)
	if err := d.closeMoves(t.Context()); err == nil {
		t.Error("the move was closed before the pod was removed")
	}
	if err := os.Remove(left); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing to do
		if err := d.closeMoves(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if m, err := dir.Move(t.Context(), move.ID); err != nil || m.State != pod.MoveDone {
		t.Errorf("the move is %+v (%v), want it done", m, err)
	}
}
