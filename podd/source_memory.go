package podd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"podd/checkpoint"
	"podd/pagesync"
	"podd/pod"
	"podd/sharedmem"
)

const (
	// connectTimeout bounds the wait for the target's pager.
	connectTimeout = 10 * time.Second
	// pendingPoll is how often it is looked whether memory is still wanted that
	// follows a pod.
	pendingPoll = 2 * time.Second
)

// sourceMemory is the memory of a pod that podd carries itself, in one move.
type sourceMemory struct {
	source *pagesync.Source
	passes []pass
	// take ends the pager's right to it.
	take func()
	// finished is closed when everything has crossed after the freeze, or err says
	// why not; cancel ends that. They are nil before.
	finished chan struct{}
	cancel   context.CancelFunc
	// committed is closed when the rest of what follows the pod may be compared; nil
	// if nothing follows it.
	committed chan struct{}
	stats     pagesync.FinishStats
	err       error
	// waited is how long the freeze was longer for it.
	waited time.Duration
}

// openMemory makes the pod's memory ready to be carried by podd itself, if it is
// to be. It is ready before the target hears of the move, whose pager asks at once.
func (m *sourceMove) openMemory(ctx context.Context) error {
	var err error
	m.chosen, m.reasonChosen, err = chooseStrategy(m.order.strategy, m.memoryBytes, m.d.unableToGive())
	if err != nil || m.chosen != "" {
		return err
	}
	pid, running := m.pod.container.PID()
	if !running {
		return fmt.Errorf("%w: the pod has ended", pod.ErrPhase)
	}
	source, err := pagesync.NewSource(pagesync.SourceOptions{Init: pid, Log: m.log})
	if err != nil {
		return fmt.Errorf("preparing to carry memory: %w", err)
	}
	// The pod may have much memory and little of the kind that podd carries.
	survey, err := source.Survey(ctx)
	if err == nil {
		m.memoryBytes = survey.Scanned
		m.chosen, m.reasonChosen, err = chooseStrategy(m.order.strategy, m.memoryBytes, nil)
	}
	if err == nil && m.chosen == "" && m.order.strategy == pod.StrategyAuto && sharesMuch(survey.Scanned, survey.Shared, m.record.Spec.MemoryBytes) {
		m.chosen, m.reasonChosen = pod.StrategyStopCopy, fmt.Sprintf("its processes share %s of memory, which only CRIU lets them go on sharing", mebibytes(survey.Shared))
	}
	if err != nil || m.chosen != "" {
		return errors.Join(err, source.Close())
	}
	m.memory = &sourceMemory{source: source, take: m.d.memories.give(m.move.ID, m.target.Name, source.Serve)}
	return nil
}

// unableToGive is why memory can't be carried from here by podd itself, nil if it
// can.
func (d *Daemon) unableToGive() error {
	return errors.Join(d.engine.CanLeaveOut(), pagesync.Supported())
}

// connectMemory waits for the target's pager. unable is why the target can't take
// memory that podd carries itself.
func (m *sourceMove) connectMemory(ctx context.Context, unable string) error {
	if m.memory == nil {
		return nil
	}
	if unable != "" {
		m.closeMemory()
		var err error
		m.chosen, m.reasonChosen, err = chooseStrategy(m.order.strategy, m.memoryBytes, fmt.Errorf("host %s: %s", m.target.Name, unable))
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, errNoPager)
	defer cancel()
	if err := m.memory.source.Connected(ctx); err != nil {
		return fmt.Errorf("waiting for the pager of host %s: %w", m.target.Name, err)
	}
	return nil
}

// errNoPager means that the target's pager did not connect in time.
var errNoPager = fmt.Errorf("%w: it did not connect in %s", pod.ErrUnavailable, connectTimeout)

// passMemory sends the memory while the pod runs, until it is decided how the rest
// of it is carried.
func (m *sourceMove) passMemory(ctx context.Context) error {
	if m.memory == nil {
		return nil
	}
	plan := memoryPlan{
		asked: m.order.strategy, budget: defaultBudget, strict: m.order.maxDowntime > 0,
		fixed: m.d.pace.fixed(m.receipt.Processes), beside: m.d.pace.beside(m.receipt.Processes),
	}
	if plan.strict {
		plan.budget = m.order.maxDowntime
	}
	if m.shared {
		size, err := sharedmem.Size(m.pod.container.FreezerDir())
		if err != nil {
			return err
		}
		plan.shared = transmission(size, compareRate)
	}
	for {
		stats, err := m.memory.source.Pass(ctx)
		if err != nil {
			return fmt.Errorf("sending memory to host %s: %w", m.target.Name, err)
		}
		m.memory.passes = append(m.memory.passes, pass{
			scanned: stats.Scanned, changed: stats.Changed, sent: stats.Sent, duration: stats.Duration, read: stats.Read,
		})
		m.receipt.Passes++
		m.receipt.CarriedBytes = stats.Scanned
		m.receipt.PrecopyBytes += stats.Sent
		m.clock.add(stats.Sent)
		m.log.Debug("a pass over the memory", "processes", stats.Processes, "regions", stats.Regions, "scanned", stats.Scanned,
			"changed", stats.Changed, "sent", stats.Sent, "duration", stats.Duration, "read", stats.Read)
		decision, err := plan.decide(m.memory.passes)
		if err != nil {
			m.d.pace.doubt()
			return err
		}
		if decision.chosen != "" {
			m.chosen, m.reasonChosen, m.receipt.Predicted = decision.chosen, decision.reason, decision.predicted
			m.log.Info("how memory is carried is decided", "strategy", decision.chosen, "reason", decision.reason, "predicted", decision.predicted)
			return nil
		}
	}
}

// leaveOut says what CRIU need not dump, and begins to send what is left of it.
// The pod has just been frozen.
func (m *sourceMove) leaveOut(ctx context.Context) ([]checkpoint.MemoryRange, error) {
	left, err := m.memory.source.Freeze(ctx)
	if err != nil {
		return nil, err
	}
	ranges := make([]checkpoint.MemoryRange, 0, len(left))
	for _, l := range left {
		ranges = append(ranges, checkpoint.MemoryRange{PID: l.PID, Start: l.Start, End: l.End})
	}
	// What may follow the pod must not be in the way of what has to go first.
	if m.chosen != pod.StrategyPostCopy {
		m.finishMemory(ctx)
	}
	return ranges, nil
}

// finishMemory sends what is left of the memory of the frozen pod, in the
// background. What follows a pod goes on when the move, and whoever asked for it,
// are gone.
func (m *sourceMove) finishMemory(ctx context.Context) {
	finishing, cancel := context.WithCancel(context.WithoutCancel(ctx))
	memory := m.memory
	memory.finished, memory.cancel = make(chan struct{}), cancel
	if m.chosen == pod.StrategyPostCopy {
		memory.committed = make(chan struct{})
		memory.source.Yield(memory.committed)
	}
	go func() {
		defer close(memory.finished)
		memory.stats, memory.err = memory.source.Finish(finishing)
	}()
}

// completeMemory waits until all memory has crossed, unless it may follow the pod.
func (m *sourceMove) completeMemory(ctx context.Context) error {
	switch {
	case m.memory == nil:
		return nil
	case m.chosen == pod.StrategyPostCopy:
		m.finishMemory(ctx)
		return nil
	}
	begin := time.Now()
	late := time.NewTimer(time.Until(m.frozen.Add(m.frozenLimit)))
	defer late.Stop()
	select {
	case <-m.memory.finished:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-late.C:
		return fmt.Errorf("sending memory to host %s: %w", m.target.Name, os.ErrDeadlineExceeded)
	}
	if m.memory.err != nil {
		return fmt.Errorf("sending memory to host %s: %w", m.target.Name, m.memory.err)
	}
	m.memory.waited = time.Since(begin)
	m.receipt.FrozenMemoryBytes += m.memory.stats.Sent
	return nil
}

// followMemory waits, after the commit, until the target needs no memory of the
// source any more. It reports false if podd stops before that: the pod's copy here
// stays as it is, frozen, and the next podd goes on.
func (m *sourceMove) followMemory() (settled bool) {
	if m.memory == nil || m.chosen != pod.StrategyPostCopy {
		return true
	}
	if m.memory.committed != nil {
		close(m.memory.committed)
	}
	m.clock.begin(pod.StageMemory)
	if err := m.at(pod.StageMemory); err != nil {
		m.log.Error("waiting for the memory meets an error", "error", err)
	}
	ctx, cancel := context.WithCancel(m.d.ctx)
	defer cancel()
	unneeded := make(chan struct{})
	m.d.tasks.Go(func() {
		if m.d.awaitUnneeded(ctx, m.move) {
			close(unneeded)
		}
	})
	finished := m.memory.finished
	for {
		select {
		case <-finished:
			if m.memory.err == nil {
				m.receipt.LateMemoryBytes = m.memory.stats.Sent
				return true
			}
			m.log.Error("sending the rest of the memory failed; the pod stands still if it needs it", "error", m.memory.err)
			finished = nil
		case <-unneeded:
			return true
		case <-m.d.ctx.Done():
			return false
		}
	}
}

// awaitUnneeded waits until nobody needs memory of a committed move's source any
// more: the target says so, or the pod has ended. It reports false when ctx ends.
func (d *Daemon) awaitUnneeded(ctx context.Context, move *pod.Move) bool {
	for {
		needed, err := d.memoryNeeded(ctx, move)
		if err == nil && !needed {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pendingPoll):
		}
	}
}

// memoryNeeded reports whether the pod of a committed move still needs memory of
// the source.
func (d *Daemon) memoryNeeded(ctx context.Context, move *pod.Move) (bool, error) {
	now, err := d.dir.Move(ctx, move.ID)
	if errors.Is(err, pod.ErrNotFound) {
		return false, nil
	}
	if err != nil || now.State != pod.MoveCommitted || !now.MemoryPending {
		return false, err
	}
	record, err := d.dir.Pod(ctx, move.Pod)
	if errors.Is(err, pod.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	return record.Binding == move.Next && record.Phase.Live(), nil
}

// closeMemory ends the carrying of memory, in any outcome.
func (m *sourceMove) closeMemory() {
	if m.memory == nil {
		return
	}
	m.memory.take()
	if m.memory.cancel != nil {
		m.memory.cancel()
	}
	if err := m.memory.source.Close(); err != nil {
		m.log.Error("letting go of the pod's memory failed", "error", err)
	}
	if m.memory.finished != nil {
		<-m.memory.finished
	}
	m.memory = nil
}

// foresee is how the memory of a pod would be carried, as far as can be told
// without looking at it, and why.
func (d *Daemon) foresee(order moveOrder, memory int64) (chosen pod.Strategy, reason string, err error) {
	chosen, reason, err = chooseStrategy(order.strategy, memory, d.unableToGive())
	if err != nil || chosen != "" {
		return chosen, reason, err
	}
	if order.strategy != pod.StrategyAuto {
		return order.strategy, askedFor, nil
	}
	return order.strategy, fmt.Sprintf("%s of memory are sent while the pod runs, and then pre-copy is chosen if the rest fits into the freeze, else post-copy", mebibytes(memory)), nil
}
