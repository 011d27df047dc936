package podd

import (
	"context"
	"fmt"

	poddv1 "podd/api/podd/v1"
	"podd/sharedmem"
)

// mount mounts the root file system. Nobody but overlay may write to its layers once it is mounted, so
// this waits for the last file. The source need not wait for it.
func (m *targetMove) mount() error {
	mount := m.container.Mount
	if m.covered {
		mount = m.container.MountCovered
	}
	m.mounted = true
	return mount()
}

// resume lets the pod run.
func (m *targetMove) resume() {
	running, err := m.d.letRun(context.WithoutCancel(m.d.ctx), m.restore, m.container, m.network)
	if err != nil {
		m.log.Error("letting the pod run failed", "running", running, "error", err)
	}
	// The source's copy must not run again, but the images are whole: they are
	// kept until the pod runs.
	m.lost = !running
}

// takeOver makes the restored pod one of this host's.
func (m *targetMove) takeOver() {
	if m.lost {
		m.log.Warn("restoring the pod once more")
		m.restore.Close()
		if m.pager != nil {
			m.pager.Close()
		}
		return // the reconcile loop does it as soon as the claim has ended
	}
	// Nothing but the pod is in its cgroup when somebody may freeze that.
	if err := sharedmem.End(m.images); err != nil {
		m.log.Error("the pod runs, with something else in its cgroup", "error", err)
	}
	p := m.d.track(m.move.Pod, m.move.Next.Epoch, m.container)
	m.log.Info("the pod runs here", "epoch", m.move.Next.Epoch)
	if m.pager != nil {
		m.d.fillIn(p, m.move.ID, m.d.imagesOf(memoryImages, m.move.Pod, m.move.Next.Epoch), m.pager)
	}
	if err := m.at("resumed"); err != nil {
		m.log.Error("putting the images away meets an error", "error", err)
	}
	m.later = append(m.later, m.restore.Close, m.removeImages)
}

func (m *targetMove) removeImages() {
	if m.images == "" {
		return
	}
	if err := m.d.removeImages(context.WithoutCancel(m.d.ctx), m.images); err != nil {
		m.log.Error("removing images failed", "error", err)
	}
}

// fail tells the source and removes every trace, unless the move is committed.
func (m *targetMove) fail(cause error) {
	m.log.Warn("the move fails on the target", "stage", m.stage, "error", cause)
	if m.asked && !m.committed {
		// The reply to the commit may have been lost.
		var err error
		if m.committed, err = m.d.settleMove(m.log, m.move, m.d.dir.CancelMove, m.stage, cause); err != nil {
			// podd stops, and with it the copy. The images stay: the next start
			// asks again, and may need them.
			return
		}
		if m.committed {
			m.resume()
			m.takeOver()
			return
		}
	}
	if m.committed {
		return
	}
	if m.restore != nil {
		if err := m.restore.Abort(); err != nil {
			m.log.Error("undoing the restore failed", "error", err)
		}
	}
	m.endMemory()
	m.removeImages()
	if m.move != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(m.d.ctx), cleanupTimeout)
		defer cancel()
		if err := m.d.removeIncarnation(ctx, m.move.Pod, m.move.Next.Epoch); err != nil {
			m.log.Error("cleaning up after the failed move failed", "error", err)
		}
	}
	// Told last: when the source says that the move failed, nothing is left here.
	report := &poddv1.TargetMessage{Error: &poddv1.TargetError{Stage: string(m.stage), Message: fmt.Sprintf("host %s: %v", m.d.Name, cause)}}
	if err := m.conn.send(report); err != nil {
		m.log.Info("the source could not be told", "error", err)
		m.abort(cause)
	}
}

// abort decides a move whose source may be gone. The source's own abort is as
// good, and it alone gives the pod back, once it is back itself.
func (m *targetMove) abort(cause error) {
	if m.move == nil {
		return
	}
	err := m.d.dir.CancelMove(context.WithoutCancel(m.d.ctx), m.move.ID, m.stage, cause)
	if err != nil {
		m.log.Warn("the move could not be recorded as aborted", "error", err)
	}
}
