package podd

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	poddv1 "podd/api/podd/v1"
	"podd/fault"
	"podd/pod"
)

// confirmations are the checkpoints whose file was sent and that wait to hear
// that it is stored. The zero value is ready.
type confirmations struct {
	mu      sync.Mutex
	waiting map[string]chan struct{} // by ID, closed by the confirmation
}

// expect announces that a checkpoint waits, until forget is called.
func (c *confirmations) expect(id string) (confirmed <-chan struct{}, forget func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.waiting == nil {
		c.waiting = map[string]chan struct{}{}
	}
	ch := make(chan struct{})
	c.waiting[id] = ch
	return ch, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.waiting, id)
	}
}

// confirm reports whether anybody waits for that.
func (c *confirmations) confirm(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.waiting[id]
	if ch == nil {
		return false
	}
	delete(c.waiting, id)
	close(ch)
	return true
}

// ConfirmCheckpoint says that a checkpoint file is stored. How the pod ended is
// said by CheckpointPod.
func (s *podService) ConfirmCheckpoint(_ context.Context, r *connect.Request[poddv1.ConfirmCheckpointRequest]) (*connect.Response[poddv1.ConfirmCheckpointResponse], error) {
	if !s.d.confirmations.confirm(r.Msg.GetPod() + "/" + r.Msg.GetId()) {
		return nil, fmt.Errorf("pod %s: %w: no checkpoint of it waits to be confirmed; the pod goes on", r.Msg.GetPod(), pod.ErrConflict)
	}
	return connect.NewResponse(&poddv1.ConfirmCheckpointResponse{}), nil
}

// finish waits until the file is stored, and ends the pod.
func (c *podCheckpoint) finish(ctx context.Context) error {
	confirmed, forget := c.d.confirmations.expect(c.pod.name + "/" + c.id)
	defer forget()
	c.clock.begin(stageConfirm)
	if err := c.send(ctx, &poddv1.CheckpointPodResponse{Id: c.id, Stage: string(stageConfirm)}); err != nil {
		return err
	}
	timer := time.NewTimer(confirmTimeout)
	defer timer.Stop()
	select {
	case <-confirmed:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return fmt.Errorf("%w: nobody has confirmed within %s that the file is stored", pod.ErrUnavailable, confirmTimeout)
	}
	// From here on it is the daemon's business alone.
	ctx = context.WithoutCancel(ctx)
	if err := fault.At("checkpoint:confirmed", nil); err != nil {
		return err
	}
	if err := c.recordStopped(ctx); err != nil {
		return err
	}
	c.end(ctx)
	return nil
}

// errUndecided means that it is not known whether the pod is recorded as
// stopped: it must not run before it is.
var errUndecided = errors.New("whether the pod is recorded as stopped is not known")

// recordStopped is the point of no return: the pod is its file's.
func (c *podCheckpoint) recordStopped(ctx context.Context) error {
	stopped := time.Now().UTC()
	for {
		err := c.d.dir.UpdatePod(ctx, c.pod.name, func(record *pod.Pod) error {
			switch {
			case superseded(c.d.Name, record, c.pod):
				return fmt.Errorf("%w: a newer incarnation exists", pod.ErrConflict)
			case record.Phase == pod.PhaseStopped && record.Checkpoint == c.id:
				return nil
			case record.Phase != pod.PhaseRunning:
				return fmt.Errorf("%w: the pod is %s", pod.ErrConflict, record.Phase)
			}
			record.Phase, record.StoppedAt, record.Checkpoint = pod.PhaseStopped, stopped, c.id
			record.Reason = fmt.Sprintf("written into checkpoint file %s; podctl restore lets it go on", c.id)
			return nil
		})
		if !errors.Is(err, pod.ErrUnavailable) {
			return err
		}
		c.log.Error("the directory can't be told that the pod is in a file; it stays frozen until it can", "error", err)
		select {
		case <-c.d.ctx.Done():
			// podd stops. The pod stays frozen, and the next start asks.
			c.dump = nil
			return fmt.Errorf("%w: %w", errUndecided, err)
		case <-time.After(directoryRetry):
		}
	}
}

// end ends the pod in silence; its files stay until it is removed.
func (c *podCheckpoint) end(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, cleanupTimeout)
	defer cancel()
	// Whoever follows the pod is told to ask again, and finds it stopped.
	c.pod.left = true
	err := c.dump.Commit(ctx)
	if err := errors.Join(err, c.d.endIncarnation(ctx, c.pod)); err != nil {
		c.log.Error("ending a pod that was written into a file failed; it is tried again", "error", err)
		c.d.wakeReconcile()
	}
	c.d.forget(c.pod)
	close(c.pod.gone)
	c.log.Info("the pod was written into a checkpoint file and stopped")
}
