package podd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"podd/checkpoint"
	"podd/fault"
	"podd/filesync"
	"podd/pod"
)

// freeze copies the pod's files while it runs, dumps it, and copies what changed
// meanwhile. It returns with the pod frozen and held by CRIU, everything of it
// spooled.
func (c *podCheckpoint) freeze(ctx context.Context) error {
	c.clock.begin(pod.StagePresync)
	// Nobody can write what the pod's owner could not: it is for podd only.
	spooled, err := os.OpenFile(c.filesPath(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("spooling files: %w", err)
	}
	defer spooled.Close()
	c.files = filesync.NewSource(fileTrees(c.pod.container), c.log)
	for range presyncPasses {
		sent, err := c.syncFiles(ctx, spooled, false)
		if err != nil {
			return err
		}
		if sent < presyncEnough {
			break
		}
	}
	if err := c.pod.container.CloseSessions(ctx); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		err := c.dumpMemory(ctx)
		if err == nil {
			break
		}
		if attempt == dumpAttempts || !inFlight(err) {
			return err
		}
		c.log.Info("a connection was made to the pod when it froze; trying again", "error", err)
	}
	if err := fault.At("checkpoint:frozen", nil); err != nil {
		return err
	}
	if err := c.spoolImages(); err != nil {
		return err
	}
	if _, err := c.syncFiles(ctx, spooled, true); err != nil {
		return err
	}
	// An error of a disk that comes late comes here.
	if err := spooled.Close(); err != nil {
		return fmt.Errorf("spooling files: %w", err)
	}
	return nil
}

// dumpAttempts is how often a dump is tried that a new connection spoils: unlike
// in a move, nobody holds them off.
const dumpAttempts = 5

// inFlight reports whether a dump failed because of a connection that no program
// has accepted yet (criu/sk-inet.c, can_dump_inet_sk).
func inFlight(err error) bool {
	var criu *checkpoint.CRIUError
	return errors.As(err, &criu) && slices.ContainsFunc(criu.Lines, func(line string) bool {
		return strings.Contains(line, "In-flight connection")
	})
}

// dumpMemory dumps the pod, which is frozen and held then. On an error it runs.
func (c *podCheckpoint) dumpMemory(ctx context.Context) error {
	if err := os.RemoveAll(c.images); err != nil {
		return fmt.Errorf("spooling memory: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(c.images, "work"), 0o700); err != nil {
		return fmt.Errorf("spooling memory: %w", err)
	}
	memory, err := os.OpenFile(c.memoryPath(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("spooling memory: %w", err)
	}
	defer memory.Close()
	if err := c.prepareDump(ctx, memory); err != nil {
		return err
	}
	if err := c.drain(ctx); err != nil {
		return err
	}
	c.createdAt = time.Now().UTC()
	if _, err := c.dump.Run(ctx); err != nil {
		return err
	}
	if err := memory.Close(); err != nil {
		return fmt.Errorf("spooling memory: %w", err)
	}
	return nil
}

func (c *podCheckpoint) filesPath() string  { return filepath.Join(c.spool, "files") }
func (c *podCheckpoint) memoryPath() string { return filepath.Join(c.images, "memory") }
func (c *podCheckpoint) imagesPath() string { return filepath.Join(c.images, "images") }

// syncFiles spools one pass of the files and returns its bytes.
func (c *podCheckpoint) syncFiles(ctx context.Context, spooled *os.File, final bool) (int64, error) {
	w := bufio.NewWriterSize(c.clock.count(spooled), 256<<10)
	stats, err := c.files.Sync(ctx, w, final)
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		return 0, fmt.Errorf("spooling files: %w", err)
	}
	return stats.Bytes, nil
}

// prepareDump starts CRIU, so that its start-up is over when the pod freezes.
func (c *podCheckpoint) prepareDump(ctx context.Context, memory *os.File) error {
	container, nsPath := c.pod.container, c.d.netnsPath(c.pod.name, c.pod.epoch)
	pid, running := container.PID()
	if !running {
		return fmt.Errorf("%w: the pod has ended", pod.ErrPhase)
	}
	freezer, err := checkpoint.NewFreezer(container.FreezerDir())
	if err != nil {
		return err
	}
	begun := false
	c.dump, err = c.d.engine.PrepareDump(ctx, checkpoint.DumpOptions{
		PID:            pid,
		NetNS:          nsPath,
		ImagesDir:      c.images,
		WorkDir:        filepath.Join(c.images, "work"),
		Pages:          c.clock.count(memory),
		ExternalMounts: keys(container.ExternalMounts()),
		FreezeCgroup:   freezer.Dir(),
		Log:            c.log,
		Hooks: checkpoint.DumpHooks{
			Freeze: func(ctx context.Context) error {
				if !begun {
					begun = true
					c.clock.begin(pod.StageFreeze)
				}
				return freezer.Freeze(ctx)
			},
			Thaw: freezer.Thaw,
			Block: func() error {
				c.clock.begin(pod.StageDump)
				return c.network.Block(nsPath)
			},
			Unblock: func() error { return c.network.Unblock(nsPath) },
		},
	})
	if err != nil {
		return fmt.Errorf("starting CRIU: %w", err)
	}
	return nil
}

// drain waits until the pod's programs have accepted the connections made to
// them: CRIU can't dump one that waits. Others may come at any time; then the
// dump fails and is tried again.
func (c *podCheckpoint) drain(ctx context.Context) error {
	path := c.d.netnsPath(c.pod.name, c.pod.epoch)
	for deadline := time.Now().Add(drainTimeout); ; {
		waiting, err := c.network.CountUnaccepted(path)
		if err != nil {
			return err
		}
		if waiting == 0 || time.Now().After(deadline) {
			return nil
		}
		select {
		case <-time.After(drainPoll):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// spoolImages puts CRIU's images other than memory into one stream.
func (c *podCheckpoint) spoolImages() error {
	f, err := os.OpenFile(c.imagesPath(), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("spooling images: %w", err)
	}
	w := bufio.NewWriterSize(f, 256<<10)
	_, err = checkpoint.SendImages(w, c.images)
	if err := errors.Join(err, w.Flush(), f.Close()); err != nil {
		return fmt.Errorf("spooling images: %w", err)
	}
	return nil
}
