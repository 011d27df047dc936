package podd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"podd/pod"
)

// fail undoes the move after an error, unless the target has committed: then
// it returns nil, and the move goes forward.
func (m *sourceMove) fail(cause error) error {
	stage := m.clock.stage()
	cause = m.why(cause)
	var at *stageError
	if errors.As(cause, &at) {
		stage = at.stage
	}
	m.log.Warn("move fails", "stage", stage, "error", cause)
	// The directory decides before the source runs again. If the restore was
	// never asked for, there is nothing to decide and no reason to wait.
	if !m.asked {
		m.resume()
	}
	cause = m.reason(cause)
	if errors.As(cause, &at) {
		stage = at.stage
	}
	cause = m.measured(cause)
	if m.asked {
		committed, err := m.settle(m.d.dir.CancelMove, stage, cause)
		switch {
		case committed:
			m.log.Warn("the target had committed before the failure", "error", cause)
			m.disarm()
			m.receipt.Freeze = max(m.receipt.Freeze, time.Since(m.frozen)) // no less is known
			return nil
		case err != nil:
			// podd stops. The pod stays frozen, and the next start asks again.
			return fmt.Errorf("%s: %w; whether pod %s is on host %s or %s is not known: %w", stage, cause, m.move.Pod, m.move.Source, m.move.Target, err)
		}
		m.resume()
	}
	// The pod goes on: it is nobody's move any more.
	if _, err := m.settle(m.d.dir.AbortMove, stage, cause); err != nil {
		m.log.Error("the move could not be recorded as aborted; the next start does it", "error", err)
	}
	m.cleanup()
	m.count(cause)
	return fmt.Errorf("%s: %w; pod %s goes on running on host %s", stage, cause, m.move.Pod, m.move.Source)
}

// reason finds out why the target ended the conversation, if that is how the
// move failed: its last message may still be there to be read.
func (m *sourceMove) reason(cause error) error {
	if m.conn == nil || errors.Is(cause, os.ErrDeadlineExceeded) || !isBroken(cause) {
		return cause
	}
	if err := m.conn.SetReadDeadline(time.Now().Add(lastWords)); err != nil {
		return cause
	}
	for {
		_, err := m.conn.expect()
		var at *stageError
		if errors.As(err, &at) {
			return err
		}
		if err != nil {
			return cause
		}
	}
}

// settle aborts the move in the directory and reports whether the target had
// committed.
func (m *sourceMove) settle(abort abortFunc, stage pod.Stage, cause error) (committed bool, err error) {
	return m.d.settleMove(m.log, m.move, abort, stage, cause)
}

// resume lets the pod go on where it was.
func (m *sourceMove) resume() {
	if m.dump == nil {
		return
	}
	if err := m.dump.Abort(); err != nil {
		m.log.Error("resuming the pod failed", "error", err)
	}
}

// finish ends the source's copy for good and cleans up after it.
func (m *sourceMove) finish() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.d.ctx), cleanupTimeout)
	defer cancel()
	if err := m.dump.Commit(ctx); err != nil {
		m.log.Error("ending the source's copy failed", "error", err)
	}
	if err := m.at(pod.StageRelease); err != nil {
		m.log.Error("cleaning up after the move meets an error", "error", err)
	}
	m.cleanup()
	m.d.forget(m.pod)
	m.pod.left = true
	close(m.pod.gone)
	removeErr := m.d.removeIncarnation(ctx, m.move.Pod, m.move.SourceEpoch)
	m.receipt.Stages = m.clock.finish()
	m.receipt.Total = time.Since(m.clock.start)
	m.count(nil)
	if err := m.close(ctx, removeErr); err != nil {
		m.log.Warn("ending the move failed; trying again", "error", err)
		m.d.background(m.closeLater)
	}
	m.log.Info("move done", "target", m.move.Target, "freeze", m.receipt.Freeze, "total", m.receipt.Total)
}

// close closes the move in the directory, if nothing is left of the pod here.
func (m *sourceMove) close(ctx context.Context, removeErr error) error {
	if removeErr != nil {
		return removeErr
	}
	return m.d.dir.FinishMove(ctx, m.move.ID, &m.receipt)
}

// closeLater tries again until the move is closed: the pod can't be moved back
// here before.
func (m *sourceMove) closeLater(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return // the next start closes it
		case <-time.After(directoryRetry):
		}
		err := m.close(ctx, m.d.removeIncarnation(ctx, m.move.Pod, m.move.SourceEpoch))
		if err == nil || errors.Is(err, pod.ErrNotFound) {
			return
		}
		m.log.Warn("ending the move failed again", "error", err)
	}
}

// leave ends the move here while the target still needs memory of it: podd stops.
// CRIU, which ends with podd, leaves the pod's copy frozen and its network blocked.
func (m *sourceMove) leave() {
	m.log.Warn("podd stops while memory of a pod that has moved is still wanted; its copy stays frozen", "target", m.move.Target)
	m.closeMemory()
	m.undoAll()
	m.count(nil)
}

// cleanup removes what the move itself needed, in any outcome.
func (m *sourceMove) cleanup() {
	m.closeMemory()
	m.undoAll()
	if m.images != "" {
		if err := os.RemoveAll(m.images); err != nil {
			m.log.Error("removing images failed", "error", err)
		}
	}
}

func (m *sourceMove) undoAll() {
	for _, f := range m.undo {
		f()
	}
	m.undo = nil
}
