package podd

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"connectrpc.com/connect"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/daemon"
	"podd/doctor"
	"podd/pod"
	"podd/trust"
	"podd/version"
)

const (
	// checkupTimeout bounds a whole look at a host, peerTimeout the wait for
	// one other daemon: what takes longer is itself a finding.
	checkupTimeout = 20 * time.Second
	peerTimeout    = 3 * time.Second
)

// CheckHost looks for what is wrong on this host, or asks the proxy to do so.
func (s *hostService) CheckHost(ctx context.Context, r *connect.Request[poddv1.CheckHostRequest]) (*connect.Response[poddv1.CheckHostResponse], error) {
	ctx, cancel := context.WithTimeout(ctx, checkupTimeout)
	defer cancel()
	if r.Msg.GetProxy() {
		return s.d.checkProxy(ctx)
	}
	findings := doctor.Judge(s.d.examine(ctx)...)
	return connect.NewResponse(&poddv1.CheckHostResponse{Host: s.d.Name, Findings: doctor.ToProto(findings)}), nil
}

// checkProxy asks the session proxy what is wrong there. That it can't be asked
// is a finding too.
func (d *Daemon) checkProxy(ctx context.Context) (*connect.Response[poddv1.CheckHostResponse], error) {
	proxy, err := d.proxy(ctx)
	if err != nil {
		return nil, err
	}
	response := &poddv1.CheckHostResponse{Host: proxy.Name}
	answer, err := d.proxyClient(proxy).CheckProxy(ctx, connect.NewRequest(&poddv1.CheckProxyRequest{}))
	if err != nil {
		peer := doctor.Peer{Kind: "proxy", Name: proxy.Name, Address: proxy.API.String(), Alive: proxy.Alive, Err: err}
		response.Findings = doctor.ToProto(peer.Judge())
	} else {
		response.Findings = answer.Msg.GetFindings()
	}
	return connect.NewResponse(response), nil
}

func (d *Daemon) hostClient(host *pod.Host) poddv1connect.HostServiceClient {
	return poddv1connect.NewHostServiceClient(d.cluster.Peers.Client(), daemon.PeerURL(trust.KindHost, host.Name), api.ClientOptions())
}

func (d *Daemon) proxyClient(proxy *pod.Proxy) poddv1connect.ProxyServiceClient {
	return poddv1connect.NewProxyServiceClient(d.cluster.Peers.Client(), daemon.PeerURL(trust.KindProxy, proxy.Name), api.ClientOptions())
}

// examine gathers everything about this host, in the order in which it is shown.
// What waits for others does so at the same time.
func (d *Daemon) examine(ctx context.Context) []doctor.Facts {
	looks := []func(context.Context) []doctor.Facts{
		d.examineMachine, d.examineService, d.examineCluster, d.examineDrift,
	}
	found := make([][]doctor.Facts, len(looks))
	var wait sync.WaitGroup
	for i, look := range looks {
		wait.Go(func() { found[i] = look(ctx) })
	}
	wait.Wait()
	return slices.Concat(found...)
}

// examineMachine is about what podd was given to run on.
func (d *Daemon) examineMachine(ctx context.Context) []doctor.Facts {
	d.mu.Lock()
	pods := len(d.pods)
	d.mu.Unlock()
	return []doctor.Facts{
		d.lookAtCRIU(ctx),
		doctor.LookAtCapabilities(),
		doctor.LookAtKernel(d.StateDir),
		doctor.LookAtParameters(doctor.HostParameters(pods)),
		lookAtHugePages(),
		doctor.LookAtCgroups(),
		doctor.LookAtSpace("pods, images and checkpoints", d.StateDir),
		doctor.LookAtMemory(),
	}
}

// examineService is about how podd was installed and started.
func (d *Daemon) examineService(context.Context) []doctor.Facts {
	store := d.cluster.Store
	return []doctor.Facts{
		d.lookAtMounts(), lookAtInit(d.InitPath),
		doctor.CertificateOf(store.Leaf(), d.Name, "podd", store.Info().Issuers),
	}
}

// examineCluster is about the others: the directory, the proxy, the hosts, and
// what is under way with them.
func (d *Daemon) examineCluster(ctx context.Context) []doctor.Facts {
	began := time.Now()
	view, err := d.dir.View(ctx)
	facts := []doctor.Facts{doctor.Directory{Latency: time.Since(began), Err: err}}
	if err != nil {
		return facts
	}
	proxy, err := d.proxy(ctx)
	if err != nil {
		facts = append(facts, noProxy{err})
	}
	var others []pod.Host
	versions := map[string]int{}
	for name, host := range view.Hosts {
		if name != d.Name {
			others = append(others, host)
			if host.Alive {
				versions[name] = host.CRIU
			}
		}
	}
	slices.SortFunc(others, func(a, b pod.Host) int { return slices.Compare([]byte(a.Name), []byte(b.Name)) })
	peers := make([]doctor.Peer, len(others))
	var ofProxy []doctor.Facts
	var wait sync.WaitGroup
	for i := range others {
		wait.Go(func() { peers[i] = d.askHost(ctx, &others[i]) })
	}
	if proxy != nil {
		wait.Go(func() { ofProxy = d.askProxy(ctx, proxy) })
	}
	wait.Wait()
	facts = append(facts, ofProxy...)
	for _, peer := range peers {
		facts = append(facts, peer)
	}
	return append(facts, criuVersions{own: view.Hosts[d.Name].CRIU, others: versions}, movesUnderWay(d.Name, view.Moves))
}

// askHost calls another podd.
func (d *Daemon) askHost(ctx context.Context, host *pod.Host) doctor.Peer {
	peer := doctor.Peer{Kind: "host", Name: host.Name, Address: host.API.String(), Alive: host.Alive, Version: host.Version, Ours: version.String()}
	if !host.Alive {
		return peer
	}
	client := d.hostClient(host)
	// The first call also makes the connection, which is not the way there and
	// back that the clock is measured by.
	for range 2 {
		began := time.Now()
		response, err := call(ctx, client.GetVersion, &poddv1.GetVersionRequest{})
		peer.RoundTrip = time.Since(began)
		if peer.Err = err; err != nil {
			return peer
		}
		if there := response.GetTime(); there != nil {
			peer.Offset, peer.Timed = doctor.ClockOffset(began, there.AsTime(), began.Add(peer.RoundTrip)), true
		}
	}
	return peer
}

// askProxy calls podproxy, and measures the way there.
func (d *Daemon) askProxy(ctx context.Context, proxy *pod.Proxy) []doctor.Facts {
	peer := doctor.Peer{Kind: "proxy", Name: proxy.Name, Address: proxy.API.String(), Alive: proxy.Alive, Version: proxy.Version, Ours: version.String()}
	if !proxy.Alive {
		return []doctor.Facts{peer}
	}
	path := doctor.LookAtPath(ctx, "proxy "+proxy.Name, d.physical, proxy.Physical)
	client := d.proxyClient(proxy)
	var holds heldNow
	for range 2 {
		began := time.Now()
		response, err := call(ctx, client.ListHolds, &poddv1.ListHoldsRequest{})
		peer.RoundTrip = time.Since(began)
		if peer.Err = err; err != nil {
			return []doctor.Facts{peer, path}
		}
		if there := response.GetTime(); there != nil {
			peer.Offset, peer.Timed = doctor.ClockOffset(began, there.AsTime(), began.Add(peer.RoundTrip)), true
		}
		holds = response.GetHolds()
	}
	return []doctor.Facts{peer, path, holds}
}

// call makes one call to another daemon, which has peerTimeout to answer.
func call[Q, A any](ctx context.Context, method func(context.Context, *connect.Request[Q]) (*connect.Response[A], error), request *Q) (*A, error) {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	response, err := method(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, err
	}
	return response.Msg, nil
}

// noProxy is that the directory knows no proxy.
type noProxy struct{ err error }

func (n noProxy) Judge() []doctor.Finding {
	return []doctor.Finding{doctor.Bad("proxy", "podproxy --address ADDRESS   # on the machine that clients' packets for pods are routed to", "%v", n.err)}
}

// heldNow are the holds in force.
type heldNow []*poddv1.Hold

// Judge is a warning when a hold has lasted longer than a freeze should.
func (h heldNow) Judge() []doctor.Finding {
	var findings []doctor.Finding
	for _, hold := range h {
		if lasted := hold.GetDuration().AsDuration(); lasted > hold.GetLimit().AsDuration()/2 {
			findings = append(findings, doctor.Worry("holds", fmt.Sprintf("podctl move show %s   # and to undo it: podctl move --cancel %s", hold.GetMove(), hold.GetMove()),
				"the packets of pod %s have been queued for %s; they are let go after %s", hold.GetPod(),
				lasted.Round(100*time.Millisecond), hold.GetLimit().AsDuration()))
		}
	}
	if len(findings) == 0 {
		findings = append(findings, doctor.Good("holds", "%d pods' packets are queued for a move", len(h)))
	}
	return findings
}
