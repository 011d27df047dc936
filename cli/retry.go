package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// How long a stream that was interrupted is tried again: longer than the
// longest freeze of a big pod, and than a restart of podd.
const (
	reconnectLimit = 2 * time.Minute
	firstDelay     = 20 * time.Millisecond
	longestDelay   = time.Second
	// settled is how long an attempt must have lasted to count as a success
	// even if it said nothing.
	settled = 5 * time.Second
)

// attempts bounds how long and how often something is tried again.
type attempts struct {
	limit time.Duration
	since time.Time // the first failure in a row
	begun time.Time // the attempt under way
	delay time.Duration
}

func newAttempts() *attempts { return &attempts{limit: reconnectLimit, delay: firstDelay} }

// begin is called before each attempt.
func (a *attempts) begin() { a.begun = time.Now() }

// succeeded forgets earlier failures.
func (a *attempts) succeeded() { a.since, a.delay = time.Time{}, firstDelay }

// wait pauses before the next attempt, each time longer. It fails when the
// context ends, or with cause when the limit is reached.
func (a *attempts) wait(ctx context.Context, cause error) error {
	now := time.Now()
	if now.Sub(a.begun) > settled {
		a.succeeded()
	}
	if a.since.IsZero() {
		a.since = now
	}
	if now.Sub(a.since) > a.limit {
		return fmt.Errorf("gave up reconnecting after %s: %w", a.limit, cause)
	}
	timer := time.NewTimer(a.delay)
	defer timer.Stop()
	a.delay = min(2*a.delay, longestDelay)
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// passing reports whether err, from a call about a pod, is one that passes by
// itself: the pod is there, so what failed was the way to the host it was on.
func (c *client) passing(ctx context.Context, name string, err error) bool {
	if ctx.Err() != nil || !c.reached.Load() {
		return false
	}
	for _, final := range []error{pod.ErrNotFound, pod.ErrInvalid, pod.ErrExists, pod.ErrBlocked} {
		if errors.Is(err, final) {
			return false
		}
	}
	response, getErr := c.pods.GetPod(ctx, connect.NewRequest(&poddv1.GetPodRequest{Pod: name}))
	if getErr != nil {
		return c.unreachable.Load() != nil && !c.refused.Load() // podd restarts
	}
	switch pod.Phase(response.Msg.GetPod().GetPhase()) {
	case pod.PhaseFailed:
		return false
	case pod.PhaseStopped:
		return !errors.Is(err, pod.ErrPhase) // what came too late stays too late
	}
	return true
}
