package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"podd/directory"
	"podd/pod"
	"podd/proxy/datapath"
)

// moving is a view of the pod x, on its way from a to b by move m, and of y.
func moving() *directory.View {
	binding := func(last byte, host string, physical string, label pod.Label, epoch pod.Epoch) pod.Binding {
		return pod.Binding{
			Virtual: netip.AddrFrom4([4]byte{100, 64, 0, last}), Public: netip.AddrFrom4([4]byte{198, 18, 0, last}),
			Host: host, Physical: netip.MustParseAddr(physical), Label: label, Epoch: epoch,
		}
	}
	return &directory.View{
		Hosts: map[string]pod.Host{
			"a": {Name: "a", Physical: netip.MustParseAddr("10.10.1.2"), Alive: true},
			"b": {Name: "b", Physical: netip.MustParseAddr("10.10.2.2")}, // down, and not forgotten
		},
		Pods: map[string]*pod.Pod{
			"x": {Spec: pod.Spec{Name: "x"}, Binding: binding(3, "a", "10.10.1.2", 1, 1), Phase: pod.PhaseMoving, Move: "m"},
			"y": {Spec: pod.Spec{Name: "y"}, Binding: binding(2, "b", "10.10.2.2", 2, 1), Phase: pod.PhaseCreating},
			"z": {Spec: pod.Spec{Name: "z"}, Binding: binding(4, "b", "10.10.2.2", 4, 1), Phase: pod.PhaseStopped},
		},
		Moves: map[string]*pod.Move{
			"m": {ID: "m", Pod: "x", Source: "a", Target: "b", SourceEpoch: 1, State: pod.MoveRunning, Next: binding(3, "b", "10.10.2.2", 3, 2)},
		},
	}
}

func testReconciler() *reconciler {
	return newReconciler(nil, new(atomic.Pointer[directory.View]), newMetrics(), slog.New(slog.DiscardHandler))
}

// pathOf finds the pod with the virtual address that ends so.
func pathOf(t *testing.T, s datapath.State, last byte) datapath.PodPath {
	t.Helper()
	for _, p := range s.Pods {
		if p.Binding.Virtual.As4()[3] == last {
			return p
		}
	}
	t.Fatalf("no path to the pod at .%d", last)
	return datapath.PodPath{}
}

func TestState(t *testing.T) {
	r, v := testReconciler(), moving()
	s, _ := r.state(v, time.Now())
	if len(s.Hosts) != 2 || len(s.Pods) != 2 {
		t.Fatalf("state is %+v, want two hosts and the two pods that have processes", s)
	}
	if p := pathOf(t, s, 2); p.Next != nil || p.Held || p.Binding != v.Pods["y"].Binding {
		t.Errorf("path to the pod that stays is %+v", p)
	}
	if p := pathOf(t, s, 3); p.Next == nil || *p.Next != v.Moves["m"].Next || p.Held || p.Binding.Label != 1 {
		t.Errorf("path to the pod that moves is %+v, want its next device and no hold yet", p)
	}
	for _, state := range []pod.MoveState{pod.MoveCommitted, pod.MoveAborted, pod.MoveDone} {
		v := moving()
		v.Moves["m"].State, v.Moves["m"].Held, v.Moves["m"].EndedAt = state, true, time.Now()
		s, _ := r.state(v, time.Now())
		if p := pathOf(t, s, 3); p.Next != nil || p.Held {
			t.Errorf("path of a %s move is %+v", state, p)
		}
	}
}

func TestHoldIsBounded(t *testing.T) {
	r, v := testReconciler(), moving()
	v.Moves["m"].Held = true
	began := time.Now()
	for _, c := range []struct {
		after time.Duration
		held  bool
		again time.Duration
	}{
		{0, true, holdLimit},
		{10 * time.Second, true, holdLimit - 10*time.Second},
		{holdLimit, false, resyncInterval},
		{holdLimit + time.Hour, false, resyncInterval},
	} {
		s, again := r.state(v, began.Add(c.after))
		if p := pathOf(t, s, 3); p.Held != c.held || again != c.again {
			t.Errorf("after %s: held %v, next look in %s; want %v, %s", c.after, p.Held, again, c.held, c.again)
		}
	}
	families, err := r.metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "podproxy_hold_seconds" && f.GetMetric()[0].GetHistogram().GetSampleCount() != 1 {
			t.Errorf("the expired hold was counted so: %v", f)
		}
	}
}

func TestHoldEnds(t *testing.T) {
	for _, state := range []pod.MoveState{pod.MoveCommitted, pod.MoveAborted} {
		r, v := testReconciler(), moving()
		v.Moves["m"].Held = true
		r.state(v, time.Now())
		if len(r.holds) != 1 {
			t.Fatalf("holds are %v", r.holds)
		}
		after := moving()
		after.Moves["m"].Held = true
		after.Moves["m"].State = pod.MoveAborted // the source has yet to undo it
		if s, _ := r.state(after, time.Now()); !pathOf(t, s, 3).Held {
			t.Error("the hold ended while the pod was still frozen")
		}
		after.Moves["m"].State, after.Moves["m"].Held, after.Moves["m"].EndedAt = state, false, time.Now()
		if s, _ := r.state(after, time.Now()); pathOf(t, s, 3).Held || len(r.holds) != 0 {
			t.Errorf("%s: still held: %v", state, r.holds)
		}
	}
	r, v := testReconciler(), moving()
	v.Moves["m"].Held = true
	r.state(v, time.Now())
	if r.state(&directory.View{}, time.Now()); len(r.holds) != 0 {
		t.Errorf("a move that was forgotten is still held: %v", r.holds)
	}
}

func TestHoldRequests(t *testing.T) {
	r, v := testReconciler(), moving()
	request := func(ctx context.Context, move string) *holdRequest {
		q := &holdRequest{ctx: ctx, move: move, done: make(chan error, 1)}
		r.waiting = append(r.waiting, q)
		return q
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	mine, early := request(t.Context(), "m"), request(t.Context(), "not yet")
	request(gone, "not yet")
	if answers := r.noteRequests(v); len(answers) != 1 || answers[0] != mine {
		t.Errorf("%d requests are to be answered, want that for the running move", len(answers))
	}
	if len(r.waiting) != 1 || r.waiting[0] != early {
		t.Errorf("%d requests wait, want that for the move yet to be seen", len(r.waiting))
	}
	if s, _ := r.state(v, time.Now()); !pathOf(t, s, 3).Held {
		t.Error("the hold asked for by a call is not there")
	}
	v.Moves["m"].State = pod.MoveAborted
	decided := request(t.Context(), "m")
	r.noteRequests(v)
	if err := <-decided.done; !errors.Is(err, pod.ErrConflict) || !strings.Contains(err.Error(), "aborted") {
		t.Errorf("hold of an aborted move: %v", err)
	}
	r.refuseAll()
	if err := <-early.done; !errors.Is(err, pod.ErrUnavailable) {
		t.Errorf("hold while stopping: %v", err)
	}
}

// BenchmarkState is what every change of the directory costs before the data
// path is even looked at, with ten thousand pods.
func BenchmarkState(b *testing.B) {
	r, v := testReconciler(), moving()
	v.Moves["m"].Held = true
	for i := range 10_000 {
		p := *v.Pods["y"]
		p.Spec.Name = fmt.Sprintf("p%d", i)
		v.Pods[p.Spec.Name] = &p
	}
	for b.Loop() {
		r.state(v, time.Now())
	}
}
