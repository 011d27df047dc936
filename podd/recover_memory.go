package podd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"podd/directory"
	"podd/fault"
	"podd/namespace"
	"podd/pager"
	"podd/pagesync"
	"podd/pod"
)

// memoryDir is where the pager of an incarnation works.
func (d *Daemon) memoryDir(container *namespace.Container) string {
	return d.imagesOf(memoryImages, container.Name(), container.Epoch())
}

// adoptPager takes over the pager that an earlier podd has started for a pod, nil
// if there is none.
func (d *Daemon) adoptPager(ctx context.Context, container *namespace.Container) (*pager.Pager, error) {
	dir := d.memoryDir(container)
	if there, err := exists(dir); err != nil || !there {
		return nil, err
	}
	if err := fault.At("target:recover-memory", nil); err != nil {
		return nil, err
	}
	pg, err := pager.Adopt(ctx, dir, d.log.With("pod", container.Name()))
	if err != nil {
		return nil, fmt.Errorf("taking over the pager of pod %s: %w", container.Name(), err)
	}
	return pg, nil
}

// endPagerOf ends whatever pager works in a directory, for a pod that is gone, and
// removes it.
func (d *Daemon) endPagerOf(ctx context.Context, dir string) error {
	pg, err := pager.Adopt(ctx, dir, d.log)
	if err == nil {
		return d.endPager(pg, dir)
	}
	d.log.Debug("there is no pager any more", "dir", dir, "error", err)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("removing what a pager left: %w", err)
	}
	return nil
}

// moveTo is the move by which an incarnation has come here, as the journal has it;
// empty if it can't be told.
func (d *Daemon) moveTo(ctx context.Context, container *namespace.Container) string {
	moves, err := d.dir.Moves(ctx)
	if err != nil {
		d.log.Warn("by which move a pod has come is not known", "pod", container.Name(), "error", err)
		return ""
	}
	for _, m := range moves {
		if m.Pod == container.Name() && m.Target == d.Name && m.Next.Epoch == container.Epoch() {
			return m.ID
		}
	}
	return ""
}

// keepMemories goes on giving memory to pods that have moved from here and whose
// memory is still wanted: an earlier podd has left them frozen.
func (d *Daemon) keepMemories(view *directory.View) {
	for _, move := range view.Moves {
		if move.State != pod.MoveCommitted || !move.MemoryPending || move.Source != d.Name {
			continue
		}
		container, err := d.runtime.Load(move.Pod, move.SourceEpoch)
		pid, running := 0, false
		if err == nil {
			if pid, running = container.PID(); !running {
				err = errors.New("the processes are gone")
			}
		}
		if err != nil {
			d.log.Error("memory that a pod needs on its new host is lost", "pod", move.Pod, "move", move.ID, "target", move.Target, "error", err)
			d.reconciler.unclosed = append(d.reconciler.unclosed, move)
			continue
		}
		d.log.Warn("going on with giving memory to a pod that has moved", "pod", move.Pod, "move", move.ID, "target", move.Target)
		drop := d.memories.keep(move.Pod, move.SourceEpoch)
		d.background(func(ctx context.Context) {
			d.keepMemory(ctx, move, pid)
			if ctx.Err() == nil {
				d.endKept(ctx, move)
			}
			drop()
			d.wakeReconcile()
		})
	}
}

// tellMemories tells the journal of pods that have moved here and lack nothing, since
// they have no pager any more: an earlier podd may not have come to that.
func (d *Daemon) tellMemories(view *directory.View) error {
	for _, move := range view.Moves {
		if move.State != pod.MoveCommitted || !move.MemoryPending || move.Target != d.Name {
			continue
		}
		there, err := exists(d.imagesOf(memoryImages, move.Pod, move.Next.Epoch))
		if err != nil {
			return err
		}
		if there {
			continue
		}
		last := pod.Arrival{}
		if move.Arrival != nil {
			last = *move.Arrival
		}
		last.Missing, last.Stalled = 0, ""
		a := &arriving{d: d, log: d.log.With("pod", move.Pod, "move", move.ID), move: move.ID}
		d.background(func(ctx context.Context) { a.tellEnd(ctx, last) })
	}
	return nil
}

// keepMemory gives a frozen copy's memory to the pod, and returns when nobody needs
// it any more, or podd stops.
func (d *Daemon) keepMemory(ctx context.Context, move *pod.Move, pid int) {
	log := d.log.With("pod", move.Pod, "move", move.ID)
	ctx, cancel := context.WithCancel(ctx)
	var giving sync.WaitGroup
	giving.Go(func() {
		for {
			err := d.giveKept(ctx, move, pid, log)
			if err == nil {
				cancel() // the target has it all
				return
			}
			if ctx.Err() != nil {
				return
			}
			log.Error("giving memory to a pod that has moved failed; trying again", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(recoverRetry):
			}
		}
	})
	d.awaitUnneeded(ctx, move)
	cancel()
	giving.Wait()
}

// giveKept gives memory until the target has it all.
func (d *Daemon) giveKept(ctx context.Context, move *pod.Move, pid int, log *slog.Logger) error {
	source, err := pagesync.Reopen(pagesync.SourceOptions{Init: pid, Log: log})
	if err != nil {
		return err
	}
	take := d.memories.give(move.ID, move.Target, source.Serve)
	_, err = source.Finish(ctx)
	take()
	return errors.Join(err, source.Close())
}

// endKept ends the frozen copy of a pod whose memory nobody needs any more, and
// closes its move.
func (d *Daemon) endKept(ctx context.Context, move *pod.Move) {
	for {
		err := d.closeKept(ctx, move)
		if err == nil || errors.Is(err, pod.ErrNotFound) {
			return
		}
		d.log.Warn("ending the move failed; trying again", "pod", move.Pod, "move", move.ID, "error", err)
		select {
		case <-ctx.Done():
			return // the next start does it
		case <-time.After(directoryRetry):
		}
	}
}

func (d *Daemon) closeKept(ctx context.Context, move *pod.Move) error {
	release, err := d.claim(ctx, move.Pod)
	if err != nil {
		return err
	}
	defer release()
	if err := d.removeRemains(ctx, move.Pod, move.SourceEpoch); err != nil {
		return err
	}
	return d.dir.FinishMove(ctx, move.ID, nil)
}
