package podd

import (
	"context"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// holdsTimeout bounds the question to the proxy about which pods are held: a
// listing of pods waits for the answer, and does without it.
const holdsTimeout = 500 * time.Millisecond

// markHeld notes in the records of pods which of them the proxy holds. Only one
// that moves can be, so the proxy is asked only if there is one.
func (d *Daemon) markHeld(ctx context.Context, pods ...*poddv1.Pod) {
	moving := map[string]*poddv1.Pod{}
	for _, p := range pods {
		if pod.Phase(p.GetPhase()) == pod.PhaseMoving {
			moving[p.GetMove()] = p
		}
	}
	if len(moving) == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, holdsTimeout)
	defer cancel()
	proxy, err := d.proxy(ctx)
	if err == nil {
		var response *poddv1.ListHoldsResponse
		if response, err = call(ctx, d.proxyClient(proxy).ListHolds, &poddv1.ListHoldsRequest{}); err == nil {
			for _, hold := range response.GetHolds() {
				if p := moving[hold.GetMove()]; p != nil {
					p.Held, p.HeldFor = true, durationpb.New(hold.GetDuration().AsDuration())
				}
			}
		}
	}
	if err != nil {
		d.log.Debug("the proxy does not tell which pods it holds", "error", err)
	}
}

// markArriving notes in the records of pods which of them are still being given
// memory after a move, as their targets have told the journal.
func (d *Daemon) markArriving(ctx context.Context, pods ...*poddv1.Pod) {
	if len(pods) == 0 {
		return
	}
	moves, err := d.dir.Moves(ctx)
	if err != nil {
		d.log.Debug("the journal does not tell which pods are given memory", "error", err)
		return
	}
	last := map[string]*pod.Move{} // the oldest come first
	for _, m := range moves {
		if m.Arrival != nil && m.Arrival.Duration == 0 && (m.State == pod.MoveCommitted || m.State == pod.MoveDone) {
			last[m.Pod] = m
		}
	}
	for _, p := range pods {
		m := last[p.GetSpec().GetName()]
		if m != nil && pod.Phase(p.GetPhase()).Live() && pod.Epoch(p.GetBinding().GetEpoch()) == m.Next.Epoch {
			p.Arrival = api.MoveToProto(m).GetArrival()
		}
	}
}
