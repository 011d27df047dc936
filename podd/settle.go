package podd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"podd/directory"
	"podd/pod"
)

const (
	// settleRetry is the pause between two attempts to learn from the
	// directory how a move was decided.
	settleRetry = 500 * time.Millisecond
	// settleTimeout is how long these go on once podd is to stop. It is less
	// than what systemd gives a service to stop in.
	settleTimeout = 20 * time.Second
	// guardInterval is how often it is looked whether the other host is there,
	// guardMisses how many times in a row it must be missing: its lease has run
	// out before the first one.
	guardInterval = 2 * time.Second
	guardMisses   = 2
)

// abortFunc is directory.AbortMove or CancelMove.
type abortFunc func(ctx context.Context, id string, stage pod.Stage, cause error) error

// settleMove aborts a move in the directory and reports whether it had been
// committed before. Neither side may let its copy run before one of the two is
// certain, so this takes as long as the directory can't be reached; it gives up
// only some time after podd was told to stop. The error then says that nothing
// is known.
func (d *Daemon) settleMove(log *slog.Logger, move *pod.Move, abort abortFunc, stage pod.Stage, cause error) (committed bool, err error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(d.ctx))
	defer cancel()
	stop := context.AfterFunc(d.ctx, func() {
		timer := time.NewTimer(settleTimeout)
		defer timer.Stop()
		select {
		case <-timer.C:
			cancel()
		case <-ctx.Done():
		}
	})
	defer stop()
	for attempt := 0; ; attempt++ {
		err := abort(ctx, move.ID, stage, cause)
		if errors.Is(err, pod.ErrNotFound) {
			// Decided so long ago that the journal has forgotten it.
			var record *pod.Pod
			record, err = d.dir.Pod(ctx, move.Pod)
			if err == nil && record.Binding == move.Next {
				return true, nil
			}
			if errors.Is(err, pod.ErrNotFound) {
				err = nil
			}
		}
		switch {
		case err == nil:
			return false, nil
		case errors.Is(err, directory.ErrCommitted):
			return true, nil
		case attempt == 0:
			log.Error("the directory can't be asked how the move stands; the pod stays where and as it is until it can", "error", err)
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("asking how move %s stands: %w", move.ID, err)
		case <-time.After(settleRetry):
		}
	}
}

// unknownTries bounds how often it is looked whether a write whose answer was
// lost was carried out after all.
const unknownTries = 15

// abortUnknown aborts a move that BeginMove may or may not have opened before
// the directory was gone: nobody carries it out.
func (d *Daemon) abortUnknown(ctx context.Context, id string, cause error) {
	for tries := 0; tries < unknownTries; {
		select {
		case <-ctx.Done():
			return // the next start does it
		case <-time.After(directoryRetry):
		}
		err := d.dir.AbortMove(ctx, id, pod.StageReserve, cause)
		switch {
		case errors.Is(err, pod.ErrUnavailable):
		case errors.Is(err, pod.ErrNotFound):
			tries++
		default:
			return
		}
	}
}

// guardMove calls end when a move has lost its sense: it was aborted, podd
// stops, or the other host is gone or hangs. dismiss ends the guard.
func (d *Daemon) guardMove(move *pod.Move, peer string, end func(cause error)) (dismiss func()) {
	ctx, cancel := context.WithCancel(d.ctx)
	stop := context.AfterFunc(d.ctx, func() { end(d.stopping()) })
	var wait sync.WaitGroup
	wait.Go(func() { d.awaitAbort(ctx, move.ID, end) })
	wait.Go(func() { d.awaitLoss(ctx, peer, end) })
	return func() { stop(); cancel(); wait.Wait() }
}

// stopping is the cause of what ends because podd does.
func (d *Daemon) stopping() error {
	return fmt.Errorf("%w: podd on host %s is stopping", pod.ErrUnavailable, d.Name)
}

// awaitAbort calls end as soon as the directory says that a move was aborted.
func (d *Daemon) awaitAbort(ctx context.Context, id string, end func(cause error)) {
	for m := range d.dir.WatchMove(ctx, id) {
		if m.State == pod.MoveAborted {
			end(&abortedError{m.Error})
			return
		}
	}
}

// abortedError is why somebody else has aborted a move, in their words.
type abortedError struct{ reason string }

func (e *abortedError) Error() string { return e.reason }
func (e *abortedError) Unwrap() error { return directory.ErrAborted }

// awaitLoss calls end when a host is missing.
func (d *Daemon) awaitLoss(ctx context.Context, peer string, end func(cause error)) {
	ticker := time.NewTicker(guardInterval)
	defer ticker.Stop()
	for misses := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		host, err := d.dir.Host(ctx, peer)
		switch {
		case err != nil: // a directory that can't be reached tells nothing
			continue
		case host.Alive:
			misses = 0
			continue
		}
		if misses++; misses == guardMisses {
			end(fmt.Errorf("%w: host %s is down: its podd does not answer", pod.ErrUnavailable, peer))
			return
		}
	}
}
