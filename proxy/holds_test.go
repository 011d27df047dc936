package proxy

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
	"podd/proxy/datapath"
)

// recordedPath is a data path that takes down what it is asked for.
type recordedPath struct {
	sets    []datapath.State
	changes []datapath.Change
	repairs []datapath.Repair
	looked  int
	err     error
}

func (p *recordedPath) Set(_ context.Context, s datapath.State) error {
	p.sets = append(p.sets, s)
	return p.err
}

func (p *recordedPath) Update(_ context.Context, c datapath.Change) error {
	p.changes = append(p.changes, c)
	return p.err
}

func (p *recordedPath) Repair(context.Context, datapath.State) ([]datapath.Repair, error) {
	p.looked++
	return p.repairs, p.err
}

func listHolds(t *testing.T, r *reconciler) []*poddv1.Hold {
	t.Helper()
	response, err := (&service{reconciler: r}).ListHolds(t.Context(), connect.NewRequest(&poddv1.ListHoldsRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	if response.Msg.GetTime() == nil {
		t.Error("the answer has no time")
	}
	return response.Msg.GetHolds()
}

// TestListHolds: a hold is listed from the moment packets queue until it ends
// in any way.
func TestListHolds(t *testing.T) {
	for _, end := range []struct {
		how  string
		step func(r *reconciler, now time.Time)
	}{
		{"aborted", func(r *reconciler, now time.Time) {
			v := moving()
			v.Moves["m"].State, v.Moves["m"].EndedAt = pod.MoveAborted, now
			r.view.Store(v)
			r.step(context.Background(), now)
		}},
		{"expired", func(r *reconciler, now time.Time) { r.step(context.Background(), now.Add(holdLimit)) }},
	} {
		r := testReconciler()
		r.path = &recordedPath{}
		v := moving()
		r.view.Store(v)
		r.step(t.Context(), time.Now())
		if holds := listHolds(t, r); len(holds) != 0 {
			t.Errorf("before: holds are %v", holds)
		}
		v.Moves["m"].Held = true
		began := time.Now()
		r.step(t.Context(), began)
		holds := listHolds(t, r)
		if len(holds) != 1 || holds[0].GetMove() != "m" || holds[0].GetPod() != "x" || holds[0].GetLimit().AsDuration() != holdLimit ||
			holds[0].GetDuration().AsDuration() < 0 || r.oldestHold() <= 0 {
			t.Errorf("during: holds are %v", holds)
		}
		end.step(r, began)
		if holds := listHolds(t, r); len(holds) != 0 || r.oldestHold() != 0 {
			t.Errorf("%s: holds are %v", end.how, holds)
		}
	}
}

// TestRepairsAreTold: by the log and by the metrics, and not while packets queue.
func TestRepairsAreTold(t *testing.T) {
	r := testReconciler()
	var log strings.Builder
	r.log = slog.New(slog.NewTextHandler(&log, nil))
	path := &recordedPath{repairs: []datapath.Repair{{Kind: "route", Detail: "to 100.64.0.3 was missing or changed"}, {Kind: "route", Detail: "another"}}}
	r.path = path
	v := moving()
	v.Moves["m"].Held = true
	r.view.Store(v)
	due := time.Now().Add(2 * resyncInterval)
	r.resync = due.Add(-1)
	r.step(t.Context(), due)
	if path.looked != 0 {
		t.Error("the kernel was looked at while packets queue")
	}
	r.view.Store(moving())
	v.Moves["m"].Held = false
	r.holds = map[string]*hold{}
	r.step(t.Context(), due)
	if path.looked != 1 || len(path.sets) != 2 {
		t.Errorf("the kernel was looked at %d times after %d sets", path.looked, len(path.sets))
	}
	if got := counted(t, r.metrics, "podproxy_repairs_total", "route"); got != 2 {
		t.Errorf("repairs of routes counted: %v", got)
	}
	if !strings.Contains(log.String(), "100.64.0.3 was missing") || !strings.Contains(log.String(), "kind=route count=2") {
		t.Errorf("the log says %s", log.String())
	}
	if again := r.step(t.Context(), due.Add(time.Second)); path.looked != 1 || again > resyncInterval {
		t.Errorf("looked %d times, next step in %s", path.looked, again)
	}
	// A data path that can't be set is not compared, but tried again.
	path.err = errors.New("no")
	if again := r.step(t.Context(), due.Add(2*resyncInterval)); path.looked != 1 || again != retryInterval || r.failure.Load() == nil {
		t.Errorf("after a failure: looked %d times, next step in %s", path.looked, again)
	}
}

// counted is a counter's value for one value of its label.
func counted(t *testing.T, m *metrics, name, label string) float64 {
	t.Helper()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		for _, metric := range f.GetMetric() {
			if f.GetName() == name && metric.GetLabel()[0].GetValue() == label {
				return metric.GetCounter().GetValue()
			}
		}
	}
	t.Fatalf("there is no %s for %s", name, label)
	return 0
}
