package podd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"podd/checkpoint"
	"podd/directory"
	"podd/fault"
	"podd/pager"
	"podd/pod"
	"podd/procfs"
)

const (
	// arrivalInterval is how often the journal is told how much memory is missing.
	arrivalInterval = time.Second
	// arrivalPatience is how long it is waited for memory to be complete by who
	// wants to move the pod on, or to write it into a file.
	arrivalPatience = 30 * time.Second
	// dyingPoll is the pause between two looks at a pod that is to die.
	dyingPoll = 50 * time.Millisecond
)

// arriving is memory that a pod of this host, which runs, is being given.
type arriving struct {
	d     *Daemon
	log   *slog.Logger
	move  string
	dir   string // of the pager
	pager *pager.Pager
	begun time.Time
	// done is closed when all of it is there, or the pod has ended.
	done chan struct{}
}

// fillIn has the memory of a pod that runs here filled in, and looks after that
// until it is done. move is how it came here; dir is the pager's.
func (d *Daemon) fillIn(p *localPod, move, dir string, pg *pager.Pager) {
	a := &arriving{
		d: d, log: d.log.With("pod", p.name, "move", move), move: move, dir: dir, pager: pg, begun: time.Now(), done: make(chan struct{}),
	}
	p.memory.Store(a)
	if err := fault.At("target:"+string(pod.StageMemory), nil); err != nil {
		a.log.Error("filling in memory meets an error", "error", err)
	}
	begun := a.begin()
	d.background(func(ctx context.Context) { a.follow(ctx, p, begun) })
}

// begin has the pager fill in what the pod does not ask for, and reports whether it
// does.
func (a *arriving) begin() bool {
	err := a.pager.Run()
	if err != nil {
		a.log.Error("filling in memory does not begin; the pod gets what it asks for", "error", err)
	}
	return err == nil
}

// follow tells the journal how the memory arrives, until all is there, the pod has
// ended, or podd stops: then the pager goes on alone, and the next podd finds it.
// begun says that the pager has begun; one that could not, on a full disk say, is
// asked again.
func (a *arriving) follow(ctx context.Context, p *localPod, begun bool) {
	ticker := time.NewTicker(arrivalInterval)
	defer ticker.Stop()
	var told pod.Arrival
	filled := a.pager.Done()
	for over := false; !over; {
		select {
		case <-ctx.Done():
			a.pager.Close()
			return
		case <-filled:
			// One that lacks memory for good stays as it is until it is ended.
			over = a.pager.Wait(ctx) == nil
			filled = nil
		case <-p.gone:
			over = true
		case <-ticker.C:
			begun = begun || a.begin()
			now := a.arrival()
			a.logStall(told, now)
			if now == told {
				continue
			}
			if err := a.d.dir.SetArrival(ctx, a.move, now, true); err != nil {
				a.log.Debug("the journal can't be told how the memory arrives", "error", err)
				continue
			}
			told = now
		}
	}
	last := a.arrival()
	last.Duration = time.Since(a.begun)
	if p.over() {
		a.log.Info("the pod has ended while its memory was arriving", "missing", last.Missing)
	} else {
		last.Missing, last.Stalled = 0, ""
		a.log.Info("the pod's memory is complete", "duration", last.Duration, "faults", last.Faults, "worst", last.WorstFault)
	}
	a.d.metrics.memoryArrived(last)
	// Nothing of the pod waits for the journal: it can be moved on now.
	if err := a.d.endPager(a.pager, a.dir); err != nil {
		a.log.Error("ending the pager failed", "error", err)
	}
	p.memory.CompareAndSwap(a, nil)
	close(a.done)
	// And the source may let go of what it kept.
	a.tellEnd(ctx, last)
}

// arrival is how things stand.
func (a *arriving) arrival() pod.Arrival {
	s := a.pager.Status()
	arrival := pod.Arrival{Missing: s.Missing, Faults: s.Faults, WorstFault: s.WorstFault}
	if s.State == pager.StateStalled || s.State == pager.StateLost {
		arrival.Stalled = s.Cause
		if s.Disconnected != "" {
			arrival.Stalled += ": " + s.Disconnected
		}
	}
	return arrival
}

func (a *arriving) logStall(before, now pod.Arrival) {
	switch {
	case before.Stalled == "" && now.Stalled != "":
		a.log.Error("the pod stands still, because memory is missing that it needs", "missing", now.Missing, "cause", now.Stalled)
	case before.Stalled != "" && now.Stalled == "":
		a.log.Info("the pod goes on, memory arrives again", "missing", now.Missing)
	}
}

// tellEnd tells the journal that nothing is wanted of the source any more, as often
// as it takes to reach it.
func (a *arriving) tellEnd(ctx context.Context, last pod.Arrival) {
	for {
		err := a.d.dir.SetArrival(ctx, a.move, last, false)
		if !errors.Is(err, pod.ErrUnavailable) {
			if err != nil && !errors.Is(err, pod.ErrNotFound) {
				a.log.Warn("the journal does not take how the memory arrived", "error", err)
			}
			return
		}
		select {
		case <-ctx.Done():
			return // the next podd tells it
		case <-time.After(directoryRetry):
		}
	}
}

// endPager ends a pager that is not needed any more, and removes its directory.
func (d *Daemon) endPager(pg *pager.Pager, dir string) error {
	if err := pg.Stop(); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing what the pager left: %w", err)
	}
	return nil
}

// awaitMemory waits until a pod has all its memory, for what needs that. The error
// wraps pod.ErrConflict if it takes long, or does not get on.
func (p *localPod) awaitMemory(ctx context.Context) error {
	a := p.memory.Load()
	if a == nil {
		return nil
	}
	timer := time.NewTimer(arrivalPatience)
	defer timer.Stop()
	ticker := time.NewTicker(dyingPoll)
	defer ticker.Stop()
	for {
		select {
		case <-a.done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
			return a.refusal(p.name)
		case <-ticker.C:
			if a.arrival().Stalled != "" {
				return a.refusal(p.name)
			}
		}
	}
}

func (a *arriving) refusal(name string) error {
	arrival := a.arrival()
	return fmt.Errorf("%w: %w", pod.ErrConflict, &directory.ArrivingError{Move: &pod.Move{ID: a.move, Pod: name, Arrival: &arrival}})
}

// kill ends the whole pod, also if it stands still because memory is missing.
func (p *localPod) kill(d *Daemon) error {
	err := p.container.Signal(unix.SIGKILL)
	if a := p.memory.Load(); a != nil && err == nil {
		d.background(func(ctx context.Context) { a.letDie(ctx, p) })
	}
	return err
}

// letDie thaws a pod all of whose processes are killed, until it has ended.
func (a *arriving) letDie(ctx context.Context, p *localPod) {
	ticker := time.NewTicker(dyingPoll)
	defer ticker.Stop()
	for {
		if err := thawKilled(p.container.FreezerDir()); err != nil && !p.over() {
			a.log.Warn("thawing a pod that is to die failed", "error", err)
		}
		select {
		case <-p.gone:
			return
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// thawKilled kills every process of a frozen cgroup, and thaws it: none of them
// does anything any more.
func thawKilled(dir string) error {
	freezer, err := checkpoint.NewFreezer(dir)
	if err != nil {
		return err
	}
	frozen, err := freezer.Frozen()
	if err != nil || !frozen {
		return err
	}
	pids, err := procfs.CgroupProcesses(dir)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("killing process %d: %w", pid, err)
		}
	}
	return freezer.Thaw()
}

// arriving is how many bytes of memory pods here lack, and how many of them stand
// still for it.
func (d *Daemon) arriving() (missing int64, stalled int) {
	for _, arrival := range d.arrivals() {
		missing += arrival.Missing
		if arrival.Stalled != "" {
			stalled++
		}
	}
	return missing, stalled
}

// arrivals is how the memory of pods arrives that do not have it all.
func (d *Daemon) arrivals() map[string]pod.Arrival {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := map[string]pod.Arrival{}
	for name, p := range d.pods {
		if a := p.memory.Load(); a != nil {
			all[name] = a.arrival()
		}
	}
	return all
}
