package proxy

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"podd/directory"
	"podd/doctor"
	"podd/proxy/datapath"
)

func TestJudgeDatapath(t *testing.T) {
	now := time.Date(2026, 1, 10, 0, 0, 0, 0, time.UTC)
	found := make([]datapath.Repair, 7)
	for i := range found {
		found[i] = datapath.Repair{Kind: "route", Detail: "missing"}
	}
	for _, c := range []struct {
		facts        datapathFacts
		severity     doctor.Severity
		says, remedy string
	}{
		{datapathFacts{now: now, pods: 3}, doctor.OK, "3 pods", ""},
		{datapathFacts{now: now, err: errors.New("no")}, doctor.Error, "may not be reachable: no", "journalctl -u podproxy"},
		{datapathFacts{now: now, last: &repaired{now.Add(-time.Minute), found}}, doctor.Warning, "last 1m0s ago; it was put right: route: missing, ", "firewall"},
		{datapathFacts{now: now, last: &repaired{now.Add(-time.Minute), found}}, doctor.Warning, "and 2 more", ""},
		{datapathFacts{now: now, last: &repaired{now.Add(-time.Hour), found}}, doctor.OK, "", ""},
	} {
		f := c.facts.Judge()[0]
		if f.Severity != c.severity || !strings.Contains(f.Detail, c.says) || !strings.Contains(f.Remedy, c.remedy) || (f.Remedy == "") != (f.Severity == doctor.OK) {
			t.Errorf("%+v: found %+v", c.facts, f)
		}
	}
}

// TestMetricNames: names, units and help texts as promtool wants them.
func TestMetricNames(t *testing.T) {
	m := newMetrics()
	m.watch(func() datapath.Stats { return datapath.Stats{} }, func() *directory.View { return nil }, func() time.Duration { return 0 }, time.Now)
	m.holdEnded("committed", time.Second)
	w := httptest.NewRecorder()
	promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{}).ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	if !strings.Contains(w.Body.String(), "# HELP podproxy_hold_oldest_seconds ") {
		t.Fatalf("metrics are missing in\n%s", w.Body)
	}
	problems, err := promlint.New(w.Body).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}
