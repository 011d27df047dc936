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
	// guardInterval is how often it is looked whether a move still makes
	// sense, guardMisses how many times in a row the other host must be
	// missing: its lease has run out before the first one.
	guardInterval = 2 * time.Second
	guardMisses   = 2
)

// settleMove aborts a move in the directory and reports whether it had been
// committed before. Neither side may let its copy run before one of the two is
// certain, so this takes as long as the directory can't be reached; it gives up
// only some time after podd was told to stop. The error then says that nothing
// is known.
func (d *Daemon) settleMove(log *slog.Logger, move *pod.Move, stage pod.Stage, cause error) (committed bool, err error) {
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
		err := d.dir.AbortMove(ctx, move.ID, stage, cause)
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

// abortUnknown aborts the move of a pod that BeginMove may or may not have
// opened before the directory was gone: nobody carries it out.
func (d *Daemon) abortUnknown(ctx context.Context, p *localPod, cause error) {
	for {
		select {
		case <-ctx.Done():
			return // the next start does it
		case <-time.After(directoryRetry):
		}
		record, err := d.dir.Pod(ctx, p.name)
		switch {
		case errors.Is(err, pod.ErrNotFound), err == nil && record.Move == "":
			return
		case err != nil, p.moving.Load() != nil: // another one may be under way
			continue
		}
		err = d.dir.AbortMove(ctx, record.Move, pod.StageReserve, cause)
		if !errors.Is(err, pod.ErrUnavailable) {
			return
		}
	}
}

// guardTransfer abandons the connection of a move when the conversation has
// lost its sense: podd stops, the move was aborted, or the other host is gone
// or hangs. dismiss ends the guard.
func (d *Daemon) guardTransfer(conn *transferConn, move *pod.Move, peer string) (dismiss func()) {
	ctx, cancel := context.WithCancel(d.ctx)
	stop := context.AfterFunc(d.ctx, func() {
		conn.abandon(fmt.Errorf("%w: podd on host %s is stopping", pod.ErrUnavailable, d.Name))
	})
	var wait sync.WaitGroup
	wait.Go(func() {
		ticker := time.NewTicker(guardInterval)
		defer ticker.Stop()
		for misses := 0; ; {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			// A directory that can't be reached tells nothing.
			if m, err := d.dir.Move(ctx, move.ID); err == nil && m.State == pod.MoveAborted {
				conn.abandon(fmt.Errorf("%w: the move was aborted: %s", pod.ErrConflict, m.Error))
				return
			}
			host, err := d.dir.Host(ctx, peer)
			switch {
			case err != nil:
				continue
			case host.Alive:
				misses = 0
				continue
			}
			if misses++; misses == guardMisses {
				conn.abandon(fmt.Errorf("%w: host %s is down: its podd does not answer", pod.ErrUnavailable, peer))
				return
			}
		}
	})
	return func() { stop(); cancel(); wait.Wait() }
}
