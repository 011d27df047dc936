package podd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"podd/directory"
	"podd/pod"
)

// moveOrder is what somebody wants moved, and on which terms.
type moveOrder struct {
	pod, target string
	strategy    pod.Strategy
	// timeout bounds everything up to the commit, maxDowntime how long the pod
	// may be frozen; 0 means no limit of the caller's.
	timeout, maxDowntime time.Duration
}

// limitError is the cause of a move that took longer than its caller allows.
type limitError struct {
	name  string
	limit time.Duration
	what  string // was measured
	// since is when the time began.
	since time.Time
	// took is what it came to in the end, 0 until then.
	took time.Duration
}

func (e *limitError) Error() string {
	if e.took == 0 { // given up before anything was begun
		return fmt.Sprintf("%s of %s exceeded", e.name, e.limit)
	}
	return fmt.Sprintf("%s of %s exceeded: %s %s", e.name, e.limit, e.what, e.took.Round(time.Millisecond))
}

// errPodGone ends a queued move.
var errPodGone = fmt.Errorf("%w: the pod has ended", pod.ErrPhase)

// bound gives the move its context: it ends when stop is called, a limit is
// reached or parent ends, each with its cause. None of that decides anything: a
// move that is ended so is aborted like one that fails.
func (m *sourceMove) bound(parent context.Context) (ctx context.Context, release func()) {
	ctx, stop := context.WithCancelCause(context.WithoutCancel(parent))
	detach := context.AfterFunc(parent, func() {
		if m.d.ctx.Err() != nil {
			stop(m.d.stopping())
		}
		stop(context.Cause(parent))
	})
	timers := []func(){func() { detach() }}
	var mu sync.Mutex // guards timers and armed
	armed := true
	m.stop = stop
	m.why = func(err error) error {
		if cause := context.Cause(ctx); cause != nil && err != nil {
			return cause
		}
		return err
	}
	m.disarm = func() {
		mu.Lock()
		defer mu.Unlock()
		armed = false
		for _, f := range timers {
			f()
		}
	}
	limit := func(e *limitError) {
		mu.Lock()
		defer mu.Unlock()
		if armed && e.limit > 0 {
			timer := time.AfterFunc(e.limit, func() { stop(e) })
			timers = append(timers, func() { timer.Stop() })
		}
	}
	limit(&limitError{name: "timeout", limit: m.order.timeout, what: "the move was given up after", since: m.clock.start})
	m.limitDowntime = func() {
		limit(&limitError{name: "max-downtime", limit: m.order.maxDowntime, what: "the pod was frozen for", since: m.frozen})
	}
	return ctx, func() { m.disarm(); stop(nil) }
}

// measured completes the cause of a move that took too long.
func (m *sourceMove) measured(cause error) error {
	var e *limitError
	if errors.As(cause, &e) {
		complete := *e
		complete.took = time.Since(e.since)
		return &complete
	}
	return cause
}

// queue waits until it is the move's turn, takes the pod again and looks at it
// once more: it has gone on meanwhile. Without an error the caller has to
// release the pod.
func (m *sourceMove) queue(ctx context.Context) (release func(), err error) {
	m.clock.begin(pod.StageQueued)
	m.log.Info("the move waits: a host has as many as it may have", "target", m.order.target)
	ended := make(chan struct{})
	defer close(ended)
	m.d.tasks.Go(func() {
		select {
		case <-m.pod.gone:
			m.stop(errPodGone)
		case <-ended:
		}
	})
	for release == nil {
		if err := m.d.dir.AwaitTurn(ctx, m.move.ID); err != nil {
			return func() {}, err
		}
		if release, err = m.start(ctx); err != nil {
			return func() {}, err
		}
	}
	check := &moveCheck{pod: m.record, local: m.pod, target: m.target}
	err = m.d.checkSource(ctx, m.pod, check)
	if err == nil {
		var blockers []pod.Blocker
		blockers, err = m.d.askTarget(ctx, m.pod, check, m.order)
		check.blockers = append(check.blockers, blockers...)
	}
	if err == nil {
		err = m.take(check)
	}
	return release, err
}

// start begins a queued move. It returns nil if it has to wait again.
func (m *sourceMove) start(ctx context.Context) (release func(), err error) {
	if release, err = m.seize(ctx); err != nil {
		return nil, err
	}
	move, err := m.d.dir.StartMove(ctx, m.move.ID)
	if err == nil {
		m.move = move
		return release, nil
	}
	release()
	switch {
	case errors.Is(err, directory.ErrQueued):
		return nil, nil
	case !errors.Is(err, pod.ErrUnavailable):
		return nil, err
	}
	m.log.Warn("the queued move can't begin yet", "error", err)
	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-time.After(directoryRetry):
		return nil, nil
	}
}
