package podd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"podd/directory"
	"podd/namespace"
	"podd/pod"
)

// unusedImages finds the images of a pod that was committed to this host but
// did not get to run; empty if there are none.
func (d *Daemon) unusedImages(view *directory.View, record *pod.Pod) (string, error) {
	for _, move := range view.Moves {
		if move.Pod != record.Name() || move.Next != record.Binding || move.State == pod.MoveAborted {
			continue
		}
		images := d.targetImages(move.ID)
		_, err := os.Stat(images)
		if errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("looking for the pod's images: %w", err)
		}
		return images, nil
	}
	return "", nil
}

// criuPoll is how often it is looked whether a CRIU that lost its podd has ended.
const criuPoll = 10 * time.Millisecond

// dyingTime is how long killed processes may take to go.
const dyingTime = 2 * time.Second

// awaitCRIU waits until no CRIU is left in the cgroup at dir. It is there from
// before a restore until after it, and ends by itself.
func awaitCRIU(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	for {
		found, err := hasCRIU(dir)
		if err != nil || !found {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for CRIU to end: %w", ctx.Err())
		case <-time.After(criuPoll):
		}
	}
}

// awaitEmpty waits a moment for processes to die that CRIU has killed at its end.
func awaitEmpty(ctx context.Context, dir string) error {
	for deadline := time.Now().Add(dyingTime); ; {
		procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("looking for processes: %w", err)
		}
		if len(procs) == 0 || time.Now().After(deadline) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(criuPoll):
		}
	}
}

func hasCRIU(dir string) (bool, error) {
	procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for CRIU: %w", err)
	}
	for _, pid := range strings.Fields(string(procs)) {
		// One that cannot be read has ended.
		if comm, err := os.ReadFile("/proc/" + pid + "/comm"); err == nil && strings.TrimSpace(string(comm)) == "criu" {
			return true, nil
		}
	}
	return false, nil
}

// restoreCommitted lets a pod run here from images that a move has left. Its
// files are still as the move made them.
func (d *Daemon) restoreCommitted(ctx context.Context, container *namespace.Container, binding pod.Binding, images string) error {
	if d.engine == nil {
		return d.engineErr
	}
	network, err := d.net(ctx)
	if err != nil {
		return err
	}
	nsPath := d.netnsPath(container.Name(), container.Epoch())
	// With the copy that died, sockets went away to which packets were let in
	// already. The answers wait in the NIC's queue, and must not leave it.
	if err := network.Detach(nsPath); err != nil {
		return err
	}
	if err := d.attachNetwork(network, nsPath, binding, true); err != nil {
		return err
	}
	restore, err := d.prepareRestore(ctx, container, network, images)
	if err != nil {
		return err
	}
	defer restore.Close()
	pid, err := restore.Run(ctx)
	if err != nil {
		return err
	}
	if err := container.Adopt(pid); err != nil {
		return errors.Join(err, restore.Abort())
	}
	if err := restore.Commit(ctx); err != nil {
		if _, running := container.PID(); !running {
			return err
		}
		d.log.Error("letting the pod's packets through failed", "pod", container.Name(), "error", err)
	}
	d.track(container.Name(), container.Epoch(), container)
	return nil
}

// removeImages removes what moves before this start have left. Only images of
// pods that could not be taken over yet are still of use.
func (d *Daemon) removeImages(view *directory.View, failed []*pod.Pod) error {
	keep := map[string]bool{}
	for _, record := range failed {
		images, err := d.unusedImages(view, record)
		if err != nil {
			return err
		}
		keep[images] = true
	}
	entries, err := os.ReadDir(d.imagesDir())
	if err != nil {
		return fmt.Errorf("looking for old images: %w", err)
	}
	for _, e := range entries {
		path := filepath.Join(d.imagesDir(), e.Name())
		if keep[path] {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("removing old images: %w", err)
		}
	}
	return nil
}
