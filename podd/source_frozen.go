package podd

import (
	"context"
	"fmt"
	"time"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// prepareHold does what need not wait until clients wait.
func (m *sourceMove) prepareHold(ctx context.Context) error {
	if err := m.pod.container.CloseSessions(ctx); err != nil {
		return err
	}
	connections, err := m.network.CountConnections(m.d.netnsPath(m.move.Pod, m.move.SourceEpoch))
	if err != nil {
		return err
	}
	m.receipt.Connections = connections
	if m.proxy, err = m.d.proxy(ctx); err != nil {
		m.log.Warn("looking for the proxy failed", "error", err)
	}
	return nil
}

// hold makes the proxy queue what clients send. A proxy that can't is no
// reason to stop: packets that are lost meanwhile are sent again by TCP. The pod
// runs, and CRIU waits only for the word to freeze it: what it does before would
// keep clients waiting.
func (m *sourceMove) hold(ctx context.Context) error {
	if err := m.d.dir.SetHeld(ctx, m.move.ID, true); err != nil {
		return err
	}
	if m.proxy != nil {
		if err := m.d.holdAtProxy(ctx, m.proxy.Name, m.move.ID); err != nil {
			m.log.Warn("the proxy does not hold the pod's packets; clients will send them again", "error", err)
		}
	}
	return m.drain(ctx)
}

// drain waits until the pod's programs have accepted the connections made to
// them: CRIU can't dump one that waits. While the proxy holds there come no new
// ones. If they are not accepted in time, the dump fails and says whose they are.
func (m *sourceMove) drain(ctx context.Context) error {
	path := m.d.netnsPath(m.move.Pod, m.move.SourceEpoch)
	for deadline := time.Now().Add(drainTimeout); ; {
		waiting, err := m.network.CountUnaccepted(path)
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

// freezeAndDump returns with the source frozen and held by CRIU, its memory on
// its way to the target.
func (m *sourceMove) freezeAndDump(ctx context.Context) error {
	result, err := m.dump.Run(ctx)
	if err != nil {
		return err
	}
	// Attempts to freeze that were given up do not count.
	m.frozen = result.FrozenAt
	m.receipt.MemoryBytes, m.receipt.Pages = result.Pages.Bytes, result.Pages.Pages
	m.receipt.FrozenMemoryBytes, m.sharedWait = result.Pages.Shared, result.Pages.SharedWait
	if err := m.conn.writer.Flush(); err != nil {
		return fmt.Errorf("sending memory: %w", err)
	}
	return nil
}

// transfer sends CRIU's other images and what changed in the files since the
// last pass. The answer to the files says that everything has arrived.
func (m *sourceMove) transfer(ctx context.Context) error {
	if err := m.send(&poddv1.SourceMessage{Message: &poddv1.SourceMessage_Images{Images: &poddv1.Images{}}}); err != nil {
		return err
	}
	images, err := m.dump.SendImages(m.clock.count(m.conn))
	if err != nil {
		return fmt.Errorf("sending images: %w", err)
	}
	// The target can look at them while the files are compared.
	if err := m.conn.Flush(); err != nil {
		return fmt.Errorf("sending images: %w", err)
	}
	m.receipt.ImageBytes = images.Bytes
	m.receipt.FrozenFileBytes, err = m.syncFiles(ctx, true)
	m.receipt.Excision = time.Since(m.frozen)
	return err
}

// restore asks for the restore and follows it to the commit.
func (m *sourceMove) restore() error {
	m.asked = true
	if err := m.send(&poddv1.SourceMessage{Message: &poddv1.SourceMessage_Restore{Restore: &poddv1.Restore{Complete: m.chosen != pod.StrategyPostCopy}}}); err != nil {
		return err
	}
	if err := m.at("restore-asked"); err != nil {
		return err
	}
	reply, err := m.conn.expect()
	if err != nil {
		return err
	}
	if reply.GetRestored() == nil {
		return fmt.Errorf("talking to host %s: unexpected answer to restore", m.move.Target)
	}
	m.clock.begin(pod.StageCommit)
	if err := m.at(pod.StageCommit); err != nil {
		return err
	}
	if reply, err = m.conn.expect(); err != nil {
		return err
	}
	if reply.GetCommitted() == nil {
		return fmt.Errorf("talking to host %s: unexpected answer instead of the commit", m.move.Target)
	}
	m.disarm()
	if err := m.at("committed"); err != nil {
		return err
	}
	m.clock.begin(pod.StageRelease)
	// The target runs whether or not it can say so.
	if reply, err = m.conn.expect(); err != nil || reply.GetRunning() == nil {
		m.log.Warn("the target has committed but did not say that the pod runs", "error", err)
	}
	m.receipt.Freeze = time.Since(m.frozen)
	m.receipt.Insertion = m.receipt.Freeze - m.receipt.Excision
	if m.memory != nil {
		m.d.pace.learn(m.receipt.Processes, m.receipt.Freeze-m.memory.waited-m.sharedWait)
	}
	return nil
}
