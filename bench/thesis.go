package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"podd/bench/measure"
	"podd/bench/peer"
	"podd/bench/report"
	"podd/bench/workload"
	"podd/lab"
)

var thesisPart = part{"thesis", "What the thesis on process migration measured, here with each optimisation on and off", runThesis}

// The works and contenders of the part.
const (
	earlyEvents = "early events, 64 MiB"
	newcomer    = "slowest new connection"

	holding    = "packets held"
	losing     = "packets lost"
	concurrent = "all processors"
	serial     = "one processor"
	sharedOnce = "shared memory"
	copiesEach = "a copy each"
)

// crowds are the numbers of processes.
var crowds = []int{1, 10, 100}

// segments are the sizes of what nine processes share, in MiB.
var segments = []int{1, 256}

const sharers = 9

func crowdName(n int) string   { return fmt.Sprintf("concurrency, %d processes", n) }
func segmentName(m int) string { return fmt.Sprintf("%d processes with %d MiB", sharers, m) }

func runThesis(ctx context.Context, b *bench) error {
	if err := peer.Adopt(); err != nil {
		return err
	}
	b.thesisFigures()
	m := &mover{bench: b, root: filepath.Join(b.dir, "root")}
	if err := os.MkdirAll(m.root, 0o755); err != nil {
		return fmt.Errorf("making the root file system: %w", err)
	}
	var err error
	if m.server, err = workload.Build(ctx, m.root); err != nil {
		return err
	}
	if _, err := b.labUp(ctx, lab.Options{Hosts: 2}); err != nil {
		return err
	}
	for _, works := range []func(context.Context, *mover) error{earlyEventWork, concurrencyWorks, sharingWorks} {
		if err := works(ctx, m); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) thesisFigures() {
	b.figure(newcomer, "ms", "the longest that any new connection took during the move; one was begun every 100 ms")
	b.figure(silence, "ms", "the longest time that the client got no answer, though it asked every millisecond")
	b.figure(freeze, "ms", "the longest time that the program did not run, by its own clock")
	b.figure(total, "ms", "from the command to its end")
	b.figure(sent, "B", "what crossed the source's link during the move")
	var names []string
	var numbers []float64
	for _, n := range crowds {
		names, numbers = append(names, crowdName(n)), append(numbers, float64(n))
	}
	b.chart(report.Chart{File: "thesis-events", Title: "Early event request: the slowest new connection during a move", Figure: newcomer, Works: []string{earlyEvents}, Contenders: []string{holding, losing}})
	b.chart(report.Chart{File: "thesis-concurrency", Title: "Freeze by the number of processes", Figure: freeze,
		Works: names, X: numbers, XLabel: "processes", LogX: true, Contenders: []string{concurrent, serial}})
	var sharing []string
	for _, s := range segments {
		sharing = append(sharing, segmentName(s))
	}
	b.chart(report.Chart{File: "thesis-sharing", Title: "Shared memory crosses once", Figure: sent, Works: sharing, Contenders: []string{sharedOnce, copiesEach}, LogY: true})
	b.note("Early event request: what is sent to a pod during its freeze waits in the proxy and is handed over at the instant it runs; " +
		"off, podproxy runs with --hold-limit 0s, and senders notice by their timeouts.")
	b.note("Concurrency: everything of podd and CRIU on each host may use all processors of the machine, or, off, one for each host.")
	b.note("Sharing: nine processes that all have one segment, or, off, a private copy each of the same content.")
	b.note("Judge each row by its own two contenders: they alternate.")
}

// earlyEventWork moves one server with and without the hold.
func earlyEventWork(ctx context.Context, m *mover) error {
	if !m.wants(earlyEvents) {
		return nil
	}
	hold := &holdSwitch{lab: m.lab}
	args := m.serverArgs(64, 0, 1)
	var entries []entry
	for name, on := range map[string]bool{holding: true, losing: false} {
		t := m.podServer("events"+strconv.FormatBool(on), args)
		t.passenger = &prepared{passenger: t.passenger, prepare: func(ctx context.Context) error { return hold.set(ctx, on) }}
		entries = append(entries, entry{by: name, trip: t})
	}
	err := m.trips(ctx, earlyEvents, m.repetitions, entries...)
	return errors.Join(err, hold.set(context.WithoutCancel(ctx), true))
}

// prepared does something before the client begins to measure, and has others
// connect during the move.
type prepared struct {
	passenger
	prepare  func(context.Context) error
	lab      *lab.Lab
	address  string
	stop     chan struct{}
	slowest  chan time.Duration
	failures chan error
}

func (p *prepared) board(ctx context.Context, l *lab.Lab, address netip.Addr) error {
	p.lab, p.address = l, net.JoinHostPort(address.String(), strconv.Itoa(workload.Port))
	return p.passenger.board(ctx, l, address)
}

func (p *prepared) depart(ctx context.Context) error {
	if err := p.prepare(ctx); err != nil {
		return err
	}
	if err := p.passenger.depart(ctx); err != nil {
		return err
	}
	p.stop, p.slowest, p.failures = make(chan struct{}), make(chan time.Duration, 1), make(chan error, 1)
	go p.connect(ctx, p.stop)
	return nil
}

// connect begins a connection every 100 ms until stop, and says how long the
// slowest took to be established. With more of them there would be one that
// nobody has accepted yet in most freezes without the hold, which CRIU refuses to
// dump.
func (p *prepared) connect(ctx context.Context, stop <-chan struct{}) {
	const interval, patience = 100 * time.Millisecond, 10 * time.Second
	var mu sync.Mutex
	var slowest time.Duration
	group, ctx := errgroup.WithContext(ctx)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for going := true; going; {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			begin := time.Now()
			conn, err := p.lab.Dial(ctx, lab.Client, "tcp", p.address)
			if err != nil {
				return fmt.Errorf("connecting during the move: %w", err)
			}
			mu.Lock()
			slowest = max(slowest, time.Since(begin))
			mu.Unlock()
			return conn.Close()
		})
		select {
		case <-ticker.C:
		case <-stop:
			going = false
		case <-ctx.Done():
			going = false
		}
	}
	p.failures <- group.Wait()
	p.slowest <- slowest
}

// halt ends the connecting.
func (p *prepared) halt() (time.Duration, error) {
	if p.stop == nil {
		return 0, nil
	}
	close(p.stop)
	p.stop = nil
	return <-p.slowest, <-p.failures
}

func (p *prepared) arrive(ctx context.Context) (measure.Values, error) {
	slowest, err := p.halt()
	if err != nil {
		return nil, err
	}
	values, err := p.passenger.arrive(ctx)
	if err != nil {
		return nil, err
	}
	values[newcomer] = milliseconds(slowest)
	return values, nil
}

func (p *prepared) abandon() {
	_, _ = p.halt() // the trip has failed already
	p.passenger.abandon()
}

// holdSwitch restarts podproxy with and without its hold.
type holdSwitch struct {
	lab *lab.Lab
	off bool
}

func (h *holdSwitch) set(ctx context.Context, on bool) error {
	if on == !h.off {
		return nil
	}
	if err := h.lab.Stop(ctx, lab.Proxy); err != nil {
		return err
	}
	var flags []string
	if !on {
		flags = []string{"--hold-limit", "0s"}
	}
	if err := h.lab.Start(ctx, lab.Proxy, flags...); err != nil {
		return err
	}
	h.off = !on
	return nil
}

// concurrencyWorks move servers of many processes.
func concurrencyWorks(ctx context.Context, m *mover) error {
	for _, n := range crowds {
		if !m.wants(crowdName(n)) {
			continue
		}
		var entries []entry
		for name, all := range map[string]bool{concurrent: true, serial: false} {
			t := m.podServer(fmt.Sprintf("crowd%d%v", n, all), m.serverArgs(64, 0, n))
			t.vehicle = &pinned{vehicle: t.vehicle, lab: m.lab, all: all}
			entries = append(entries, entry{by: name, trip: t})
		}
		if err := m.trips(ctx, crowdName(n), m.repetitions, entries...); err != nil {
			return err
		}
	}
	return nil
}

// pinned lets the hosts' daemons use all processors during moves, or one each.
type pinned struct {
	vehicle
	lab *lab.Lab
	all bool
}

func (p *pinned) move(ctx context.Context) (_ measure.Values, err error) {
	if !p.all {
		if err := pinDaemons(p.lab, false); err != nil {
			return nil, err
		}
		defer func() { err = errors.Join(err, pinDaemons(p.lab, true)) }()
	}
	return p.vehicle.move(ctx)
}

// pinDaemons sets the processors of the two hosts' daemons, which the processes
// that they start inherit.
func pinDaemons(l *lab.Lab, all bool) error {
	var every unix.CPUSet
	if err := unix.SchedGetaffinity(0, &every); err != nil {
		return fmt.Errorf("asking for the processors: %w", err)
	}
	processors := []int{}
	for i := 0; len(processors) < every.Count(); i++ {
		if every.IsSet(i) {
			processors = append(processors, i)
		}
	}
	for i, host := range sides {
		set := every
		if !all {
			set.Zero()
			set.Set(processors[i%len(processors)])
		}
		pid, err := l.PID(host)
		if err != nil {
			return err
		}
		threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return fmt.Errorf("listing the threads of host %s: %w", host, err)
		}
		for _, t := range threads {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				return fmt.Errorf("listing the threads of host %s: %w", host, err)
			}
			if err := unix.SchedSetaffinity(tid, &set); err != nil && err != unix.ESRCH {
				return fmt.Errorf("choosing the processors of host %s: %w", host, err)
			}
		}
	}
	return nil
}

// sharingWorks move processes that share memory, and such that have copies.
func sharingWorks(ctx context.Context, m *mover) error {
	for _, size := range segments {
		work := segmentName(size)
		if !m.wants(work) {
			continue
		}
		var entries []entry
		for name, flag := range map[string]string{sharedOnce: "-s", copiesEach: "-c"} {
			args := append(m.serverArgs(size, 0, sharers), flag)
			t := m.podServer(fmt.Sprintf("share%d%s", size, strings.TrimPrefix(flag, "-")), args)
			entries = append(entries, entry{by: name, trip: t})
		}
		if err := m.trips(ctx, work, m.times(size*sharers), entries...); err != nil {
			return err
		}
	}
	return nil
}
