package directory

import (
	"context"
	"fmt"

	"podd/pod"
)

// ArrivingError says that the memory of a pod has not come to its host yet, and so
// that the pod can't be moved again.
type ArrivingError struct{ Move *pod.Move }

func (e *ArrivingError) Error() string {
	text := fmt.Sprintf("the memory of pod %s is still arriving (move %s)", e.Move.Pod, e.Move.ID)
	if a := e.Move.Arrival; a != nil {
		text += fmt.Sprintf(": %d MiB left", (a.Missing+1<<20-1)>>20)
		if a.Stalled != "" {
			text += "; it stands still: " + a.Stalled
		}
	}
	return text
}

// memoryNeeded reports whether the pod of a committed move lives on its new host and
// lacks memory of the source.
func (v *View) memoryNeeded(m *pod.Move) bool {
	p := v.Pods[m.Pod]
	return m.State == pod.MoveCommitted && m.MemoryPending && p != nil && p.Binding == m.Next && p.Phase.Live()
}

// ChooseStrategy records how a running move carries the memory, and why. It must
// have been recorded when the move is committed. A move that was aborted refuses
// it (ErrAborted).
func (d *Directory) ChooseStrategy(ctx context.Context, id string, chosen pod.Strategy, reason string) error {
	return d.updateMove(ctx, id, "recording the strategy", func(m *pod.Move) error {
		if m.State != pod.MoveRunning {
			return decided(m)
		}
		m.Chosen, m.Reason = chosen, reason
		return nil
	})
}

// SetArrival records, for the target of a committed move, how the memory comes
// that follows the pod. When none of it is pending any more the source may let go
// of what it kept, and the pod can be moved again.
func (d *Directory) SetArrival(ctx context.Context, id string, arrival pod.Arrival, pending bool) error {
	return d.updateMove(ctx, id, "recording the memory", func(m *pod.Move) error {
		if m.State != pod.MoveCommitted && m.State != pod.MoveDone {
			return fmt.Errorf("%w: move %s is not committed", pod.ErrConflict, id)
		}
		m.Arrival = &arrival
		m.MemoryPending = m.MemoryPending && pending
		return nil
	})
}
