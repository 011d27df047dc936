package proxy

import (
	"math"
	"strings"
	"time"

	mdns "github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"podd/directory"
	"podd/proxy/datapath"
	"podd/proxy/dns"
	"podd/version"
	"podd/vnet/vxlan"
)

// metrics are podproxy's own; names follow Prometheus' conventions (base units,
// _total for counters).
type metrics struct {
	registry *prometheus.Registry
	set      prometheus.Histogram
	follow   prometheus.Histogram
	failures prometheus.Counter
	repairs  *prometheus.CounterVec
	hold     *prometheus.HistogramVec
	queries  *prometheus.CounterVec
	relays   *prometheus.CounterVec
	// relayBytes counts what relays have carried.
	relayBytes prometheus.Counter
	relaysOpen prometheus.Gauge
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		set: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "podproxy_datapath_set_seconds", Help: "Time to bring the kernel in line with one view of the directory.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 4, 10),
		}),
		follow: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "podproxy_directory_follow_seconds", Help: "Time from the arrival of a change in the directory until the kernel was in line with it.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 4, 10),
		}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "podproxy_datapath_set_failures_total", Help: "Attempts at that which failed, to be repeated.",
		}),
		repairs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "podproxy_repairs_total", Help: "Things in the kernel that something else had changed and that were put right, by kind.",
		}, []string{"kind"}),
		hold: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "podproxy_hold_seconds", Help: "How long the packets of a moving pod were queued, by what ended it.",
			Buckets: []float64{.01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"outcome"}),
		queries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "podproxy_dns_queries_total", Help: "DNS queries answered, by audience and response code.",
		}, []string{"audience", "rcode"}),
		relays: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "podproxy_relays_total", Help: "Requests to be connected to another host, by what became of them.",
		}, []string{"outcome"}),
		relayBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "podproxy_relay_bytes_total", Help: "Bytes carried between hosts that can't reach each other, both ways.",
		}),
		relaysOpen: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "podproxy_relays", Help: "Connections between such hosts now, those included for which one of them waits.",
		}),
	}
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "podproxy_info", Help: "Always 1; the label says which build runs.",
		ConstLabels: prometheus.Labels{"version": version.String()},
	})
	info.Set(1)
	for _, kind := range datapath.RepairKinds {
		m.repairs.WithLabelValues(kind)
	}
	m.registry.MustRegister(m.set, m.follow, m.failures, m.repairs, m.hold, m.queries, m.relays, m.relayBytes, m.relaysOpen, info,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) setTook(d time.Duration, err error) {
	m.set.Observe(d.Seconds())
	if err != nil {
		m.failures.Inc()
	}
}

// followed notes that the kernel is in line with a view that came at received.
func (m *metrics) followed(received time.Time) { m.follow.Observe(time.Since(received).Seconds()) }

func (m *metrics) repaired(kind string) { m.repairs.WithLabelValues(kind).Inc() }

func (m *metrics) holdEnded(outcome string, d time.Duration) {
	m.hold.WithLabelValues(outcome).Observe(d.Seconds())
}

func (m *metrics) query(a dns.Audience, rcode int) {
	name, ok := mdns.RcodeToString[rcode]
	if !ok {
		name = "other"
	}
	m.queries.WithLabelValues(string(a), strings.ToLower(name)).Inc()
}

// relayEnded counts relays that were carried, unmet (the second host did not
// come) and refused.
func (m *metrics) relayEnded(outcome string) { m.relays.WithLabelValues(outcome).Inc() }

// watch adds what the data path, the view and the reconciler know themselves.
func (m *metrics) watch(stats func() datapath.Stats, view func() *directory.View, oldestHold func() time.Duration, certificateEnd func() time.Time) {
	gauge := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	counter := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, value))
	}
	gauge("podproxy_pods", "Pods that have a path.", func() float64 { return float64(stats().Pods) })
	gauge("podproxy_pods_held", "Pods whose packets are queued now.", func() float64 { return float64(len(stats().Held)) })
	gauge("podproxy_hold_oldest_seconds", "How long the packets of the pod held longest have been queued; 0 when none is held.",
		func() float64 { return oldestHold().Seconds() })
	gauge("podproxy_hold_queue_limit_bytes", "How much the kernel queues for one held pod before it drops the oldest packets.",
		func() float64 { return vxlan.HoldQueueBytes })
	if _, err := datapath.Discards(); err == nil {
		counter("podproxy_neighbour_discards_total", "Packets the kernel has dropped, on the whole machine, because a held pod's queue was full or a neighbour did not answer.",
			func() float64 {
				n, err := datapath.Discards()
				if err != nil {
					return math.NaN()
				}
				return float64(n)
			})
	}
	gauge("podproxy_devices", "Labelled devices.", func() float64 { return float64(stats().Devices) })
	gauge("podproxy_devices_superseded", "Labelled devices about to be deleted.", func() float64 { return float64(stats().Superseded) })
	gauge("podproxy_hosts", "Hosts that labelled packets are accepted from.", func() float64 { return float64(stats().Hosts) })
	counter("podproxy_switches_total", "Paths that were switched to another host.", func() float64 { return float64(stats().Switches) })
	counter("podproxy_kernel_changes_total", "Changes made in the kernel.", func() float64 { return float64(stats().Changes) })
	gauge("podproxy_certificate_expiry_timestamp_seconds", "When podproxy's certificate ends, unless it is renewed.",
		func() float64 { return float64(certificateEnd().Unix()) })
	gauge("podproxy_directory_revision", "Revision of the directory last seen.", func() float64 {
		if v := view(); v != nil {
			return float64(v.Revision)
		}
		return 0
	})
}
