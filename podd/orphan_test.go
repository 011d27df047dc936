package podd

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"podd/pod"
)

// TestRemoveOrphan removes a pod whose host is down, by another host.
func TestRemoveOrphan(t *testing.T) {
	dir := newDirectory(t)
	address := netip.MustParseAddr("10.10.9.2")
	registration, err := dir.RegisterHost(t.Context(), pod.Host{Name: "lost", Physical: address, API: netip.AddrPortFrom(address, DefaultPort)})
	if err != nil {
		t.Fatal(err)
	}
	spec := pod.Spec{Name: "alice", Command: []string{"true"}}
	if err := spec.Validate(); err != nil {
		t.Fatal(err)
	}
	record, err := dir.CreatePod(t.Context(), spec, "lost")
	if err != nil {
		t.Fatal(err)
	}
	if err := dir.UpdatePod(t.Context(), "alice", func(p *pod.Pod) error { p.Phase = pod.PhaseRunning; return nil }); err != nil {
		t.Fatal(err)
	}
	move, err := dir.BeginMove(t.Context(), "alice", "b", pod.StrategyAuto)
	if err != nil {
		t.Fatal(err)
	}
	d := newDaemon(t, "b", dir)
	if err := d.removePod(t.Context(), "alice", true); !errors.Is(err, pod.ErrConflict) || !strings.Contains(err.Error(), "just come back") {
		t.Errorf("while its host lives: %v", err)
	}
	if err := registration.Close(); err != nil {
		t.Fatal(err)
	}
	if err := d.removePod(t.Context(), "alice", false); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("without force: %v", err)
	}
	if err := d.removePod(t.Context(), "alice", true); err != nil {
		t.Errorf("with force: %v", err)
	}
	if p, err := dir.Pod(t.Context(), "alice"); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("there still is %+v (%v)", p, err)
	}
	if m, err := dir.Move(t.Context(), move.ID); err != nil || m.State != pod.MoveAborted || !strings.Contains(m.Error, "host lost is down") {
		t.Errorf("its move is %+v (%v), want it aborted with the reason", m, err)
	}
	// The name is free, for another pod with another label.
	anew, err := dir.CreatePod(t.Context(), spec, "a")
	if err != nil || anew.Binding.Label == record.Binding.Label {
		t.Errorf("made anew: %+v (%v), before it was %+v", anew, err, record)
	}
}
