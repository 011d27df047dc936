package podd

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"podd/directory"
	"podd/pod"
	"podd/version"
)

// moveOutcome is how a move from this host ended, as metrics count it.
type moveOutcome string

const (
	// outcomeDone: the pod runs on the target.
	outcomeDone moveOutcome = "done"
	// outcomeAborted: something failed, and the pod goes on here.
	outcomeAborted moveOutcome = "aborted"
	// outcomeCancelled: somebody asked for it to be undone.
	outcomeCancelled moveOutcome = "cancelled"
	// outcomeLimit: it took longer than --timeout or --max-downtime allow.
	outcomeLimit moveOutcome = "limit"
	// outcomeRefused: preflight found what can't be carried.
	outcomeRefused moveOutcome = "refused"
)

var moveOutcomes = []moveOutcome{outcomeDone, outcomeAborted, outcomeCancelled, outcomeLimit, outcomeRefused}

// scrapeTimeout bounds the read of the directory that a scrape makes.
const scrapeTimeout = 2 * time.Second

// metrics are podd's own; names follow Prometheus' conventions (base units,
// _total for counters). The methods of a nil *metrics do nothing.
type metrics struct {
	registry *prometheus.Registry
	moves    *prometheus.CounterVec
	stages   *prometheus.HistogramVec
	freeze   prometheus.Histogram
	total    prometheus.Histogram
	bytes    *prometheus.CounterVec
	faults   prometheus.Counter
	arrivals prometheus.Histogram
}

// newMetrics makes the metrics of d, whose directory must be open by the time
// they are asked for.
func newMetrics(d *Daemon) *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		moves: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "podd_moves_total", Help: "Moves from this host that have ended, by outcome.",
		}, []string{"outcome"}),
		stages: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "podd_move_stage_seconds", Help: "How long the stages of moves from this host took.",
			Buckets: prometheus.ExponentialBuckets(.001, 3, 11),
		}, []string{"stage"}),
		freeze: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "podd_move_freeze_seconds", Help: "How long no process of a pod that moved from this host ran.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}),
		total: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "podd_move_seconds", Help: "How long moves from this host took, from the request until this host was clean.",
			Buckets: []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300, 1800},
		}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "podd_move_bytes_total", Help: "Bytes sent by moves from this host that were done, by kind.",
		}, []string{"kind"}),
	}
	m.faults = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "podd_memory_faults_total", Help: "Times that a process of a pod which moved here waited for memory.",
	})
	m.arrivals = prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "podd_memory_arrival_seconds", Help: "How long it took from when a pod that moved here ran until it had all its memory.",
		Buckets: []float64{.01, .05, .1, .5, 1, 5, 10, 30, 60, 300},
	})
	for _, outcome := range moveOutcomes {
		m.moves.WithLabelValues(string(outcome))
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "podd_info", Help: "Always 1; the label says which build runs.",
		ConstLabels: prometheus.Labels{"version": version.String()},
	})
	info.Set(1)
	state := &stateCollector{
		host: d.Name,
		view: func(ctx context.Context) (*directory.View, error) { return d.dir.View(ctx) },
		drift: func() (repaired, failed map[driftKind]uint64) {
			report := d.driftReport()
			return report.repaired, report.failed
		},
		certificateEnd: func() time.Time { return d.cluster.Store.Leaf().NotAfter },
		arriving:       d.arriving,
	}
	m.registry.MustRegister(m.moves, m.stages, m.freeze, m.total, m.bytes, m.faults, m.arrivals, info, state,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// memoryArrived counts the memory of one pod that was filled in here.
func (m *metrics) memoryArrived(arrival pod.Arrival) {
	if m == nil {
		return
	}
	m.faults.Add(float64(arrival.Faults))
	m.arrivals.Observe(arrival.Duration.Seconds())
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// moveEnded counts one move. receipt is what it has measured, nil if nothing.
func (m *metrics) moveEnded(outcome moveOutcome, receipt *pod.Receipt) {
	if m == nil {
		return
	}
	m.moves.WithLabelValues(string(outcome)).Inc()
	if receipt == nil {
		return
	}
	for _, s := range receipt.Stages {
		m.stages.WithLabelValues(string(s.Stage)).Observe(s.Duration.Seconds())
	}
	if outcome != outcomeDone {
		return
	}
	m.freeze.Observe(receipt.Freeze.Seconds())
	m.total.Observe(receipt.Total.Seconds())
	for kind, n := range map[string]int64{
		"memory": receipt.MemoryBytes, "presync_files": receipt.PresyncFileBytes, "frozen_files": receipt.FrozenFileBytes, "images": receipt.ImageBytes,
		"precopy": receipt.PrecopyBytes, "frozen_memory": receipt.FrozenMemoryBytes, "late_memory": receipt.LateMemoryBytes,
	} {
		m.bytes.WithLabelValues(kind).Add(float64(n))
	}
}

// count counts the move, which failed with cause unless that is nil.
func (m *sourceMove) count(cause error) {
	if cause != nil {
		m.receipt.Stages = m.clock.finish()
	}
	m.d.metrics.moveEnded(outcomeOf(cause), &m.receipt)
}

// cancelledWord begins the reason in the journal of a move that was cancelled.
const cancelledWord = "cancelled"

func outcomeOf(cause error) moveOutcome {
	var blocked *blockedError
	var limit *limitError
	var aborted *abortedError
	switch {
	case cause == nil:
		return outcomeDone
	case errors.As(cause, &blocked):
		return outcomeRefused
	case errors.As(cause, &limit):
		return outcomeLimit
	case errors.As(cause, &aborted) && strings.HasPrefix(aborted.reason, cancelledWord):
		return outcomeCancelled
	}
	return outcomeAborted
}

// stateCollector reads the state of this host for each scrape, most of it from
// the directory: that read is also what its latency is measured by.
type stateCollector struct {
	host  string
	view  func(context.Context) (*directory.View, error)
	drift func() (repaired, failed map[driftKind]uint64)
	// certificateEnd is when the certificate does.
	certificateEnd func() time.Time
	// arriving is how many bytes of memory pods here lack, and how many of them
	// stand still for it.
	arriving func() (missing int64, stalled int)
}

var (
	podsDesc        = describe("podd_pods", "Pods of this host, by phase.", "phase")
	heldDesc        = describe("podd_pods_held", "Pods of this host whose packets the proxy was asked to queue.")
	runningDesc     = describe("podd_moves_running", "Moves under way from or to this host, by its part in them.", "role")
	queuedDesc      = describe("podd_moves_queued", "Moves from this host that wait for their turn.")
	upDesc          = describe("podd_directory_up", "Whether the directory could be read.")
	latencyDesc     = describe("podd_directory_read_seconds", "How long the directory took to be read for this scrape.")
	revisionDesc    = describe("podd_directory_revision", "Revision of the directory.")
	repairedDesc    = describe("podd_reconcile_repairs_total", "Differences from the directory that were put right, by kind.", "kind")
	failuresDesc    = describe("podd_reconcile_failures_total", "Attempts to do so that failed, by kind.", "kind")
	missingDesc     = describe("podd_memory_missing_bytes", "Memory that pods which moved here have yet to be given.")
	stalledDesc     = describe("podd_pods_stalled", "Pods that stand still until memory arrives.")
	certificateDesc = describe("podd_certificate_expiry_timestamp_seconds", "When podd's certificate ends, unless it is renewed.")
)

func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c *stateCollector) Describe(out chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{podsDesc, heldDesc, runningDesc, queuedDesc, upDesc, latencyDesc, revisionDesc, repairedDesc, failuresDesc, certificateDesc, missingDesc, stalledDesc} {
		out <- d
	}
}

// Collect implements prometheus.Collector.
func (c *stateCollector) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, labels...)
	}
	repaired, failed := c.drift()
	for _, kind := range driftKinds {
		out <- prometheus.MustNewConstMetric(repairedDesc, prometheus.CounterValue, float64(repaired[kind]), string(kind))
		out <- prometheus.MustNewConstMetric(failuresDesc, prometheus.CounterValue, float64(failed[kind]), string(kind))
	}
	missing, stalled := c.arriving()
	gauge(missingDesc, float64(missing))
	gauge(stalledDesc, float64(stalled))
	gauge(certificateDesc, float64(c.certificateEnd().Unix()))
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	began := time.Now()
	view, err := c.view(ctx)
	gauge(latencyDesc, time.Since(began).Seconds())
	if err != nil {
		gauge(upDesc, 0)
		return
	}
	gauge(upDesc, 1)
	gauge(revisionDesc, float64(view.Revision))
	phases := map[pod.Phase]int{}
	for _, p := range view.Pods {
		if p.Binding.Host == c.host {
			phases[p.Phase]++
		}
	}
	for _, phase := range []pod.Phase{pod.PhaseCreating, pod.PhaseRunning, pod.PhaseMoving, pod.PhaseStopped, pod.PhaseFailed} {
		gauge(podsDesc, float64(phases[phase]), string(phase))
	}
	var held, from, to, queued float64
	for _, m := range view.Moves {
		switch {
		case m.State == pod.MoveQueued && m.Source == c.host:
			queued++
		case m.State != pod.MoveRunning:
		case m.Source == c.host:
			from++
			if m.Held {
				held++
			}
		case m.Target == c.host:
			to++
		}
	}
	gauge(queuedDesc, queued)
	gauge(heldDesc, held)
	gauge(runningDesc, from, "source")
	gauge(runningDesc, to, "target")
}
