package podd

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"podd/directory"
	"podd/pod"
)

// scrape is what Prometheus would read of a collector, or of all.
func scrape(t *testing.T, m *metrics) string {
	t.Helper()
	w := httptest.NewRecorder()
	m.handler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	return w.Body.String()
}

func expectLines(t *testing.T, text string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains(text, "\n"+line+"\n") {
			t.Errorf("there is no %q", line)
		}
	}
}

func TestMoveMetrics(t *testing.T) {
	m := newMetrics(&Daemon{})
	receipt := &pod.Receipt{
		Stages: []pod.StageTime{{Stage: pod.StageDump, Duration: 20 * time.Millisecond}},
		Freeze: 30 * time.Millisecond, Total: 2 * time.Second, MemoryBytes: 1 << 20, PresyncFileBytes: 7, ImageBytes: 9,
	}
	m.moveEnded(outcomeDone, receipt)
	m.moveEnded(outcomeCancelled, &pod.Receipt{Stages: []pod.StageTime{{Stage: pod.StageDump, Duration: time.Millisecond}}})
	m.moveEnded(outcomeRefused, nil)
	m.registry.Unregister(&stateCollector{}) // it has no directory to ask
	expectLines(t, scrape(t, m),
		`podd_moves_total{outcome="done"} 1`, `podd_moves_total{outcome="cancelled"} 1`, `podd_moves_total{outcome="refused"} 1`, `podd_moves_total{outcome="aborted"} 0`,
		`podd_move_stage_seconds_count{stage="dump"} 2`, `podd_move_freeze_seconds_count 1`, `podd_move_freeze_seconds_sum 0.03`, `podd_move_seconds_sum 2`,
		`podd_move_bytes_total{kind="memory"} 1.048576e+06`, `podd_move_bytes_total{kind="presync_files"} 7`, `podd_move_bytes_total{kind="images"} 9`)
	(*metrics)(nil).moveEnded(outcomeDone, receipt)
}

func TestOutcomes(t *testing.T) {
	for _, c := range []struct {
		cause error
		want  moveOutcome
	}{
		{nil, outcomeDone},
		{errors.New("no space"), outcomeAborted},
		{fmt.Errorf("queued: %w", &blockedError{}), outcomeRefused},
		{fmt.Errorf("presync: %w", &limitError{name: "timeout"}), outcomeLimit},
		{fmt.Errorf("presync: %w", &abortedError{"cancelled: lunch"}), outcomeCancelled},
		{&abortedError{"podd was restarted meanwhile"}, outcomeAborted},
	} {
		if got := outcomeOf(c.cause); got != c.want {
			t.Errorf("%v counts as %s, want %s", c.cause, got, c.want)
		}
	}
}

// TestStateMetrics: what a scrape tells of the directory, and that one which
// can't be read does not keep the rest from being told.
func TestStateMetrics(t *testing.T) {
	on := func(host string, phase pod.Phase) *pod.Pod {
		return &pod.Pod{Phase: phase, Binding: pod.Binding{Host: host}}
	}
	view, failure := &directory.View{
		Revision: 42,
		Pods:     map[string]*pod.Pod{"x": on("a", pod.PhaseRunning), "y": on("a", pod.PhaseMoving), "z": on("b", pod.PhaseRunning), "w": on("a", pod.PhaseRunning)},
		Moves: map[string]*pod.Move{
			"1": {Source: "a", Target: "b", State: pod.MoveRunning, Held: true}, "2": {Source: "b", Target: "a", State: pod.MoveRunning},
			"3": {Source: "a", Target: "b", State: pod.MoveDone}, "4": {Source: "a", Target: "b", State: pod.MoveQueued},
		},
	}, error(nil)
	m := &metrics{registry: prometheus.NewRegistry()}
	m.registry.MustRegister(&stateCollector{
		host: "a",
		view: func(context.Context) (*directory.View, error) { return view, failure },
		drift: func() (repaired, failed map[driftKind]uint64) {
			return map[driftKind]uint64{driftNetwork: 2}, map[driftKind]uint64{driftCRIU: 1}
		},
		certificateEnd: func() time.Time { return time.Unix(1800000000, 0) },
		arriving:       func() (missing int64, stalled int) { return 4096, 1 },
	})
	always := []string{
		`podd_certificate_expiry_timestamp_seconds 1.8e+09`,
		`podd_reconcile_repairs_total{kind="network"} 2`, `podd_reconcile_repairs_total{kind="host"} 0`, `podd_reconcile_failures_total{kind="criu"} 1`,
		`podd_memory_missing_bytes 4096`, `podd_pods_stalled 1`,
	}
	expectLines(t, scrape(t, m), append(always,
		`podd_pods{phase="running"} 2`, `podd_pods{phase="moving"} 1`, `podd_pods{phase="stopped"} 0`, `podd_pods_held 1`,
		`podd_moves_running{role="source"} 1`, `podd_moves_running{role="target"} 1`, `podd_moves_queued 1`, `podd_directory_up 1`, `podd_directory_revision 42`)...)
	view, failure = nil, errors.New("no")
	text := scrape(t, m)
	expectLines(t, text, append(always, `podd_directory_up 0`)...)
	if strings.Contains(text, "podd_pods{") {
		t.Error("pods are counted without a directory")
	}
}

// TestMetricNames: names, units and help texts as promtool wants them.
func TestMetricNames(t *testing.T) {
	m := newMetrics(&Daemon{})
	m.moveEnded(outcomeDone, &pod.Receipt{Stages: []pod.StageTime{{Stage: pod.StageDump}}})
	m.registry.Unregister(&stateCollector{})
	m.registry.MustRegister(&stateCollector{
		view:           func(context.Context) (*directory.View, error) { return &directory.View{}, nil },
		drift:          func() (repaired, failed map[driftKind]uint64) { return nil, nil },
		certificateEnd: time.Now,
		arriving:       func() (missing int64, stalled int) { return 0, 0 },
	})
	text := scrape(t, m)
	if !strings.Contains(text, "# HELP podd_pods ") || !strings.Contains(text, "# HELP podd_move_stage_seconds ") {
		t.Fatalf("metrics are missing in\n%s", text)
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
