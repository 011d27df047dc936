package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"podd/bench/measure"
	"podd/bench/report"
	"podd/bench/traffic"
	"podd/lab"
)

var pathPart = part{"path", "The way from a client to a pod, beside plain routing and HAProxy, with up to 10,000 pods", runPath}

// The contenders beside podd.
const (
	routing = "routing"
	haproxy = "haproxy"
)

// The figures of the part.
const (
	sending     = "client to pod"
	receiving   = "pod to client"
	roundTrip   = "round trip p50"
	slowTrip    = "round trip p99"
	connections = "connections"
	relative    = "connections / routing"
	datagrams   = "datagrams"
	losses      = "datagrams lost"
	bringIn     = "bringing in a pod"
	proxyMemory = "podproxy and directory"
	database    = "directory's file"
	followerMem = "podd of another host"
	kernelLabel = "kernel per label"
)

// sizes are the numbers of pods that the proxy knows.
var sizes = []int{1, 100, 1000, 10000}

func sizeName(n int) string {
	if n == 1 {
		return "1 pod"
	}
	return fmt.Sprintf("%d pods", n)
}

// How long each measurement takes. There are many of them.
const (
	streamTime   = 300 * time.Millisecond
	connectTime  = 150 * time.Millisecond
	connectTurns = 3
	roundTrips   = 1500
	connectors   = 4
)

// pather measures ways.
type pather struct {
	*bench
	detour *detour
	filler *filler
	pod    netip.Addr
}

func runPath(ctx context.Context, b *bench) (err error) {
	b.pathFigures()
	root := filepath.Join(b.dir, "root")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return fmt.Errorf("making the root file system: %w", err)
	}
	server, err := traffic.Build(ctx, root)
	if err != nil {
		return err
	}
	if _, err := b.labUp(ctx, lab.Options{Hosts: 2}); err != nil {
		return err
	}
	p := &pather{bench: b}
	if _, err := b.podctl(ctx, "run", "-d", "--name", "server", "--host", sides[0], "--image", "dir:"+root, "--", "/traffic"); err != nil {
		return err
	}
	var view podView
	if err := b.podctlJSON(ctx, &view, "inspect", "server"); err != nil {
		return err
	}
	p.pod = view.PublicAddress
	if p.detour, err = newDetour(ctx, b, server); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.detour.close()) }()
	if p.filler, err = startFiller(ctx, b.lab); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.filler.close()) }()
	for _, address := range []netip.Addr{p.pod, plainAddress, transitAddress} {
		conn, err := awaitPort(ctx, b.lab, address, traffic.Port)
		if err != nil {
			return err
		}
		conn.Close()
	}
	for _, n := range sizes {
		if err := p.size(ctx, n); err != nil {
			return fmt.Errorf("with %s: %w", sizeName(n), err)
		}
	}
	return nil
}

// size measures everything with so many pods.
func (p *pather) size(ctx context.Context, n int) error {
	work := sizeName(n)
	if !p.wants(work) {
		return nil
	}
	if err := p.fill(ctx, n); err != nil {
		return err
	}
	ways := []measure.Contender{
		{Name: podd, Once: p.podWay},
		{Name: routing, Once: func(ctx context.Context) (measure.Values, error) { return p.way(ctx, plainAddress, true) }},
	}
	if n == 1 {
		ways = append(ways, measure.Contender{
			Name: haproxy, Once: func(ctx context.Context) (measure.Values, error) { return p.way(ctx, transitAddress, false) },
		})
	}
	if err := p.work(ctx, work, ways...); err != nil {
		return err
	}
	if err := p.memoryOf(n); err != nil {
		return err
	}
	return p.work(ctx, work, measure.Contender{Name: podd, Once: p.bringIn})
}

func (p *pather) client(server netip.Addr) *traffic.Client {
	return &traffic.Client{Within: func(fn func() error) error { return p.lab.Do(lab.Client, fn) }, Server: server, Base: traffic.Port}
}

// way measures the way to a server.
func (p *pather) way(_ context.Context, server netip.Addr, udp bool) (measure.Values, error) {
	c := p.client(server)
	v := measure.Values{}
	var err error
	if v[sending], err = c.Send(streamTime); err != nil {
		return nil, err
	}
	if v[receiving], err = c.Receive(streamTime); err != nil {
		return nil, err
	}
	v[sending], v[receiving] = v[sending]/1e9, v[receiving]/1e9
	trips, err := c.RoundTrips(roundTrips)
	if err != nil {
		return nil, err
	}
	slices.Sort(trips)
	v[roundTrip], v[slowTrip] = microseconds(trips[len(trips)/2]), microseconds(trips[len(trips)*99/100])
	if v[connections], err = c.Connects(connectors, connectTurns*connectTime); err != nil {
		return nil, err
	}
	if udp {
		if v[datagrams], v[losses], err = c.Datagrams(streamTime); err != nil {
			return nil, err
		}
		v[losses] *= 100
	}
	return v, nil
}

// podWay measures the way to the pod. New connections are also compared with
// plain routing's in short turns, so that what disturbs the machine for longer
// does not matter when numbers of pods are compared.
func (p *pather) podWay(ctx context.Context) (measure.Values, error) {
	v, err := p.way(ctx, p.pod, true)
	if err != nil {
		return nil, err
	}
	pod, plain := 0.0, 0.0
	for range connectTurns {
		for _, turn := range []struct {
			server netip.Addr
			total  *float64
		}{{p.pod, &pod}, {plainAddress, &plain}} {
			rate, err := p.client(turn.server).Connects(connectors, connectTime)
			if err != nil {
				return nil, err
			}
			*turn.total += rate
		}
	}
	v[relative] = pod / plain
	return v, nil
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func (b *bench) pathFigures() {
	b.figure(sending, "Gbit/s", "one connection's throughput, as the server has received it")
	b.figure(receiving, "Gbit/s", "the same, the other way")
	b.figure(roundTrip, "us", "the median time from a request of 64 bytes to its answer, on one connection")
	b.figure(slowTrip, "us", "the time that 99 of 100 answers took at most")
	b.figure(connections, "/s", "new connections, each with a byte that is answered, by four clients")
	b.figure(relative, "", "new connections to the pod by those to plain routing's server, in turns of 150 ms")
	b.figure(datagrams, "/s", "datagrams of 64 bytes that have arrived at the server, sent as fast as one client can")
	b.figure(losses, "%", "what part of those sent has not arrived")
	b.figure(bringIn, "ms", "in podproxy, from the arrival of a new pod's record until the kernel knows the way to it")
	b.figure(proxyMemory, "B", "memory of podproxy, with the directory in it (proportional set size)")
	b.figure(database, "B", "the directory's file")
	b.figure(followerMem, "B", "memory of a podd without pods, which follows the directory, too")
	b.figure(kernelLabel, "B", "what each pod adds to the memory of the proxy's kernel")
	at := func(n int, by, figure string) measure.Key {
		return measure.Key{Work: sizeName(n), Contender: by, Figure: figure}
	}
	most := sizes[len(sizes)-1]
	b.bar(report.Bar{Name: "throughput client to pod / plain routing", Of: at(1, podd, sending), Against: at(1, routing, sending), Limit: 0.75, AtLeast: true})
	b.bar(report.Bar{Name: "round trip p50, added to plain routing", Of: at(1, podd, roundTrip), Against: at(1, routing, roundTrip), Minus: true, Limit: 30, Unit: "us"})
	b.bar(report.Bar{Name: "new connections at 10,000 pods / at 1 (both by plain routing's)", Of: at(most, podd, relative), Against: at(1, podd, relative), Limit: 0.95, AtLeast: true})
	b.bar(report.Bar{Name: "bringing in a pod at 10,000 pods", Of: at(most, podd, bringIn), Limit: 10, Unit: "ms"})
	var names []string
	var numbers []float64
	for _, n := range sizes {
		names, numbers = append(names, sizeName(n)), append(numbers, float64(n))
	}
	b.chart(report.Chart{File: "path-throughput", Title: "Throughput, client to server", Figure: sending, Works: names[:1], Contenders: []string{podd, routing, haproxy}})
	b.chart(report.Chart{File: "path-latency", Title: "Round trip, median", Figure: roundTrip, Works: names[:1], Contenders: []string{podd, routing, haproxy}})
	b.chart(report.Chart{
		File: "path-connections", Title: "New connections a second", Figure: connections,
		Works: names, X: numbers, XLabel: "pods that the proxy knows", LogX: true, Contenders: []string{podd, routing},
	})
	b.chart(report.Chart{
		File: "path-bring-in", Title: "Bringing in one more pod", Figure: bringIn,
		Works: names, X: numbers, XLabel: "pods that the proxy knows", LogX: true, Contenders: []string{podd},
	})
	b.note("plain routing crosses as many links and routers as podd's way: client, router, another node beside the proxy, router, host. " +
		"That node has no rule and tracks no connection. HAProxy runs on it, in TCP mode with splicing; it carries no datagrams.")
	b.note("All but one of the pods are records in the directory, of a host that answers nothing; to podproxy they are pods like any other.")
}

// startProgram starts a program that is to run until stop is called.
func startProgram(cmd *exec.Cmd) (stop func() error, err error) {
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting %s: %w", cmd.Path, err)
	}
	return func() error {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("ending %s: %w", cmd.Path, err)
		}
		_ = cmd.Wait() // it was killed
		return nil
	}, nil
}
