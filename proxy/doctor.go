package proxy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	poddv1 "podd/api/podd/v1"
	"podd/doctor"
	"podd/pod"
	"podd/proxy/datapath"
)

const (
	// checkTimeout bounds a look at the proxy.
	checkTimeout = 15 * time.Second
	// checkedAtOnce is how many hosts are pinged at the same time.
	checkedAtOnce = 16
	// repairFresh is how long a repair is worth telling.
	repairFresh = 10 * time.Minute
)

// CheckProxy looks for what is wrong here.
func (s *service) CheckProxy(ctx context.Context, _ *connect.Request[poddv1.CheckProxyRequest]) (*connect.Response[poddv1.CheckProxyResponse], error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	name, facts := s.examine(ctx)
	return connect.NewResponse(&poddv1.CheckProxyResponse{Proxy: name, Findings: doctor.ToProto(doctor.Judge(facts...))}), nil
}

// examine gathers everything about the proxy, in the order in which it is shown.
func (p *Proxy) examine(ctx context.Context) (name string, facts []doctor.Facts) {
	facts = []doctor.Facts{
		doctor.LookAtKernel(""),
		doctor.LookAtParameters(doctor.ProxyParameters()),
		doctor.LookAtSpace("the directory and credentials", p.StateDir),
		doctor.LookAtMemory(),
		p.lookAtDatapath(),
		doctor.CertificateOf(p.cluster.Store.Leaf(), p.Name, "podproxy", p.cluster.Store.Info().Issuers),
	}
	began := time.Now()
	_, err := p.dir.Cluster(ctx)
	facts = append(facts, doctor.Directory{Latency: time.Since(began), Err: err})
	return p.Name, append(facts, p.lookAtPaths(ctx)...)
}

// lookAtPaths measures the ways to the hosts that are alive.
func (p *Proxy) lookAtPaths(ctx context.Context) []doctor.Facts {
	view := p.view.Load()
	if view == nil {
		return nil
	}
	var hosts []pod.Host
	for _, h := range view.Hosts {
		if h.Alive {
			hosts = append(hosts, h)
		}
	}
	slices.SortFunc(hosts, func(a, b pod.Host) int { return strings.Compare(a.Name, b.Name) })
	paths := make([]doctor.Facts, len(hosts))
	turns := make(chan struct{}, checkedAtOnce)
	var wait sync.WaitGroup
	for i, h := range hosts {
		wait.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			paths[i] = doctor.LookAtPath(ctx, "host "+h.Name, p.physical, h.Physical)
		})
	}
	wait.Wait()
	return paths
}

// repaired is what the last look at the kernel has found that was not in order.
type repaired struct {
	at    time.Time
	found []datapath.Repair
}

// datapathFacts is how the kernel of the proxy stands.
type datapathFacts struct {
	// err is why the last change could not be made.
	err  error
	last *repaired
	pods int
	now  time.Time
}

func (p *Proxy) lookAtDatapath() datapathFacts {
	f := datapathFacts{last: p.reconciler.repairs.Load(), now: time.Now()}
	if failure := p.reconciler.failure.Load(); failure != nil {
		f.err = *failure
	}
	if view := p.view.Load(); view != nil {
		for _, record := range view.Pods {
			if record.Phase.Live() {
				f.pods++
			}
		}
	}
	return f
}

func (f datapathFacts) Judge() []doctor.Finding {
	const check = "datapath"
	switch {
	case f.err != nil:
		return []doctor.Finding{doctor.Bad(check, "journalctl -u podproxy -n 50   # it goes on trying", "pods may not be reachable: %v", f.err)}
	case f.last != nil && f.now.Sub(f.last.at) < repairFresh:
		return []doctor.Finding{doctor.Worry(check, "journalctl -u podproxy -g repaired   # when; what else sets rules here? systemctl list-units '*firewall*' '*iptables*' '*network*'",
			"something other than podproxy has changed the kernel, last %s ago; it was put right: %s", f.now.Sub(f.last.at).Round(time.Second), summary(f.last.found))}
	}
	return []doctor.Finding{doctor.Good(check, "%d pods run, and the kernel is as it should be for them", f.pods)}
}

// summary is the first repairs in words.
func summary(found []datapath.Repair) string {
	var words []string
	for _, r := range found[:min(len(found), repairsLogged)] {
		words = append(words, r.String())
	}
	if more := len(found) - len(words); more > 0 {
		words = append(words, fmt.Sprintf("and %d more", more))
	}
	return strings.Join(words, ", ")
}
