package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"podd/bench/measure"
	"podd/bench/peer"
	"podd/bench/report"
	"podd/bench/traffic"
	"podd/lab"
)

var createPart = part{"create", "From the command that makes a pod until it answers a client, its end, and many pods on a host", runCreate}

// The figures of the part.
const (
	firstByte   = "first byte"
	returned    = "command returned"
	ended       = "stop"
	creating    = "creating all"
	daemonPod   = "daemon per pod"
	kernelPod   = "kernel per pod"
	processPod  = "processes per pod"
	machinePod  = "machine per pod"
	daemonTotal = "daemon"
	answering   = "answering"
)

const (
	oneServer = "a server"
	manyPods  = 200
)

var manyServers = fmt.Sprintf("%d servers on a host", manyPods)

// manyRepetitions is how often many pods are made: it takes half a minute.
const manyRepetitions = 3

// creator makes servers that all have the same root file system, with nothing
// but the server in it.
type creator struct {
	*bench
	root string
}

func runCreate(ctx context.Context, b *bench) error {
	if err := peer.Adopt(); err != nil {
		return err
	}
	b.createFigures()
	c := &creator{bench: b, root: filepath.Join(b.dir, "root")}
	if err := os.MkdirAll(c.root, 0o755); err != nil {
		return fmt.Errorf("making the root file system: %w", err)
	}
	if _, err := traffic.Build(ctx, c.root); err != nil {
		return err
	}
	if _, err := b.labUp(ctx, lab.Options{Hosts: 2}); err != nil {
		return err
	}
	runtime, err := filepath.Abs(b.runc())
	if err != nil {
		return fmt.Errorf("looking for runc: %w", err)
	}
	pods, hosts, runcs, podmans := &podMaker{c, "dir:" + c.root}, &podMaker{c, "host"}, &runcMaker{c}, &podmanMaker{c, runtime}
	if err := b.work(ctx, oneServer, contenders(c.one, pods, hosts, runcs, podmans)...); err != nil {
		return err
	}
	return b.workTimes(ctx, manyServers, min(b.repetitions, manyRepetitions), contenders(c.many, pods, runcs)...)
}

// contenders are makers that do the same work.
func contenders(once func(context.Context, maker) (measure.Values, error), makers ...maker) []measure.Contender {
	var list []measure.Contender
	for _, m := range makers {
		list = append(list, measure.Contender{Name: m.name(), Once: func(ctx context.Context) (measure.Values, error) { return once(ctx, m) }})
	}
	return list
}

func (b *bench) createFigures() {
	b.figure(firstByte, "ms", "from the command until the server has answered a client that connects as soon as the command has returned")
	b.figure(returned, "ms", "from the command until it has returned")
	b.figure(ended, "ms", "the command that ends the server and removes everything of it")
	b.figure(creating, "ms", "making all of them, four commands at a time")
	b.figure(answering, "", "how many of them answered a client")
	b.figure(daemonTotal, "B", "memory of the host's daemon with all of them (proportional set size)")
	b.figure(daemonPod, "B", "what a pod adds to the daemons' memory: the host's and the proxy's, with the directory in it")
	b.figure(kernelPod, "B", "what it adds to the kernel's memory: slab, stacks, page tables, per-CPU data")
	b.figure(processPod, "B", "its processes' own memory, the server's and its init's (proportional set size)")
	b.figure(machinePod, "B", "what it takes of the machine's available memory in all")
	key := func(by, figure string) measure.Key {
		return measure.Key{Work: oneServer, Contender: by, Figure: figure}
	}
	b.bar(report.Bar{Name: "run to first byte: podd / runc run", Of: key(podd, firstByte), Against: key(runc, firstByte), Limit: 1.5})
	b.bar(report.Bar{Name: "run to first byte: podd / podman run", Of: key(podd, firstByte), Against: key(podman, firstByte), Limit: 0.35})
	b.bar(report.Bar{Name: manyServers + " that answer", Of: measure.Key{Work: manyServers, Contender: podd, Figure: answering}, Limit: manyPods, AtLeast: true})
	b.chart(report.Chart{
		File: "create", Title: "From the command to the first byte", Figure: firstByte,
		Works: []string{oneServer}, Contenders: []string{podd, poddHost, runc, podman},
	})
	b.note("podd's figures include a network of the pod's own, its public address and the lookup of its name. runc and podman " +
		"make none: their servers use the network namespace of the host, which is the best that they can do.")
}

// maker makes and removes servers.
type maker interface {
	name() string
	// run starts a server and returns when its command has; port is the first
	// of those it is to listen on, where it shares its address with others.
	run(ctx context.Context, id string, port uint16) error
	// prepare does what need not be done again for each server of a name.
	prepare(ctx context.Context, id string, port uint16) error
	// address is where a client finds it.
	address(ctx context.Context, id string, port uint16) (netip.AddrPort, error)
	// remove ends servers and removes what is left of them. It is no error
	// that there are none.
	remove(ctx context.Context, ids ...string) error
	// daemons are the processes that stay for the sake of servers.
	daemons() ([]int, error)
	// parent is the cgroup that all servers' are in.
	parent() string
}

// one measures one server's life.
func (c *creator) one(ctx context.Context, m maker) (_ measure.Values, err error) {
	const id, port = "one", traffic.Port
	if err := m.prepare(ctx, id, port); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.remove(context.WithoutCancel(ctx), id))
		}
		err = errors.Join(err, reapOrphans())
	}()
	begin := time.Now()
	if err := m.run(ctx, id, port); err != nil {
		return nil, err
	}
	returnedAt := time.Now()
	address, err := m.address(ctx, id, port)
	if err != nil {
		return nil, err
	}
	if err := c.answers(ctx, address); err != nil {
		return nil, err
	}
	answered := time.Now()
	if err := m.remove(ctx, id); err != nil {
		return nil, err
	}
	removed := time.Now()
	return measure.Values{
		firstByte: milliseconds(answered.Sub(begin)), returned: milliseconds(returnedAt.Sub(begin)), ended: milliseconds(removed.Sub(answered)),
	}, nil
}

// answers asks a server, again and again while it starts, until it answers.
func (c *creator) answers(ctx context.Context, server netip.AddrPort) error {
	const limit, pause = 10 * time.Second, 200 * time.Microsecond
	client := &traffic.Client{Within: func(fn func() error) error { return c.lab.Do(lab.Client, fn) }, Server: server.Addr(), Base: server.Port()}
	for deadline := time.Now().Add(limit); ; {
		err := client.Answer()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil || time.Now().After(deadline) {
			return fmt.Errorf("waiting for the server's answer: %w", err)
		}
		time.Sleep(pause)
	}
}
