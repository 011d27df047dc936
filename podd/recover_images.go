package podd

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"podd/fault"
	"podd/namespace"
	"podd/pod"
	"podd/procfs"
	"podd/sharedmem"
)

// dyingTime is how long killed processes may take to go.
const dyingTime = 2 * time.Second

// awaitEmpty waits a moment for processes to die that CRIU has killed at its end. What
// keeps shared memory for the images stays.
func awaitEmpty(ctx context.Context, dir, images string) error {
	keeper, err := sharedmem.Find(images)
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(dyingTime); ; {
		pids, err := procfs.CgroupProcesses(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(pids) == 0 || len(pids) == 1 && pids[0] == keeper || time.Now().After(deadline) {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(strayPoll):
		}
	}
}

// restoreCommitted lets a pod run here from images that a move has left, and looks
// after it. Its files are still as the move made them. The images stay.
func (d *Daemon) restoreCommitted(ctx context.Context, container *namespace.Container, binding pod.Binding, images string) error {
	if d.engine == nil {
		return d.engineErr
	}
	if err := fault.At("target:recover-restore", nil); err != nil {
		return err
	}
	network, err := d.net(ctx)
	if err != nil {
		return err
	}
	nsPath := d.netnsPath(container.Name(), container.Epoch())
	// With the copy that died, sockets went away to which packets were let in
	// already. The answers wait in the NIC's queue, and must not leave it. The
	// namespace goes too: in it, connections whose end nobody is told of
	// (FIN-WAIT-1) keep their addresses for minutes from those restored.
	if err := network.DeleteNamespace(nsPath); err != nil {
		return err
	}
	if err := d.attachNetwork(network, nsPath, binding, true); err != nil {
		return err
	}
	pg, err := d.adoptPager(ctx, container)
	if err != nil {
		return err
	}
	given := false
	defer func() {
		if pg != nil && !given {
			pg.Close()
		}
	}()
	restore, err := d.prepareRestore(ctx, container, network, images, nil, pg)
	if err != nil {
		return err
	}
	defer restore.Close()
	if _, err := restore.Run(ctx); err != nil {
		return err
	}
	if pg != nil {
		// What is not there yet the source keeps until it hears otherwise.
		if err := pg.Verify(ctx, false); err != nil {
			return errors.Join(err, restore.Abort())
		}
	}
	running, err := d.letRun(ctx, restore, container, network)
	if !running {
		return err
	}
	if err != nil {
		d.log.Error("letting the pod run failed", "pod", container.Name(), "error", err)
	}
	if err := sharedmem.End(images); err != nil {
		d.log.Error("the pod runs, with something else in its cgroup", "pod", container.Name(), "error", err)
	}
	p := d.track(container.Name(), container.Epoch(), container)
	if pg != nil {
		given = true
		d.fillIn(p, d.moveTo(ctx, container), d.memoryDir(container), pg)
	}
	return nil
}
