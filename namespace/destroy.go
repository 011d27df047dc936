package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// killTimeout bounds how long Release waits for killed processes. They take
// long only in uninterruptible sleep, on a dead NFS server for instance.
const killTimeout = 30 * time.Second

// Release ends the pod if it runs and gives everything back but its files:
// processes, mounts, cgroup. Its logs and exit status can still be read. It may
// be repeated, and after a crash finishes what was begun.
func (c *Container) Release(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if err := c.kill(ctx); err != nil {
		return fmt.Errorf("releasing container %s: %w", c.id, err)
	}
	c.sessions.close()
	errs := []error{
		c.removeCgroup(ctx),
		unmount(c.paths.rootfs),
		unmount(c.paths.volatile),
		unmount(c.paths.masked),
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("releasing container %s: %w", c.id, err)
	}
	// Only once nothing is mounted below them may these be deleted.
	if err := errors.Join(os.RemoveAll(c.paths.run), os.RemoveAll(c.paths.libcontainer)); err != nil {
		return fmt.Errorf("releasing container %s: %w", c.id, err)
	}
	return nil
}

// kill ends the init, and with it, the kernel sees to that, every process of the
// pod.
func (c *Container) kill(ctx context.Context) error {
	f, err := c.open()
	if err != nil || f == nil {
		return err
	}
	if err := unix.PidfdSendSignal(int(f.Fd()), unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("killing the init: %w", err)
	}
	// If it is frozen it dies when it is let go.
	if err := c.thaw(); err != nil {
		return err
	}
	_, err = c.Wait(ctx)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return err
	}
	return nil // what the exit status was does not matter here
}

// Destroy is Release, and deletes the pod's files, named volumes included. A
// container of which only pieces are left is destroyed as well.
func (c *Container) Destroy(ctx context.Context) error {
	if err := c.Release(ctx); err != nil {
		return err
	}
	// The record goes last: without it nobody would look for the rest.
	entries, err := os.ReadDir(c.paths.state)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("deleting container %s: %w", c.id, err)
	}
	for _, entry := range entries {
		path := filepath.Join(c.paths.state, entry.Name())
		if path == c.paths.record {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("deleting container %s: %w", c.id, err)
		}
	}
	if err := os.RemoveAll(c.paths.state); err != nil {
		return fmt.Errorf("deleting container %s: %w", c.id, err)
	}
	return nil
}
