package cli_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

var multipathBlocker = pod.Blocker{PID: 7, Program: "java", Descriptor: 12, Problem: "io_uring instance", Remedy: "start it with -Dio_uring=false"}

func (s *server) checkMove(name, target string) (*fakePod, error) {
	p, err := s.get(name)
	if err != nil {
		return nil, err
	}
	if err := checkHost(target); err != nil {
		return nil, err
	}
	if p.record.Binding.Host == target {
		return nil, fmt.Errorf("%w: %s is on %s already", pod.ErrInvalid, name, target)
	}
	if !p.record.Phase.Live() {
		return nil, fmt.Errorf("%w: pod %s is %s", pod.ErrPhase, name, p.record.Phase)
	}
	return p, nil
}

func (s *server) CheckMove(_ context.Context, r *connect.Request[poddv1.CheckMoveRequest]) (*connect.Response[poddv1.CheckMoveResponse], error) {
	if _, err := s.checkMove(r.Msg.GetPod(), r.Msg.GetTarget()); err != nil {
		return nil, err
	}
	out := &poddv1.CheckMoveResponse{MemoryBytes: 64 << 20, FileBytes: 3 << 10, Processes: 3, Connections: 1, Strategy: "pre-copy", Reason: "60 MiB are carried before the freeze"}
	if r.Msg.GetTarget() == "odd" {
		out.Blockers = api.BlockersToProto([]pod.Blocker{
			multipathBlocker,
			{Descriptor: -1, Problem: "kernel 5.10 on odd has no time namespaces", Remedy: "choose a host with 6.1 or newer"},
		})
	}
	return connect.NewResponse(out), nil
}

// MovePod moves a pod at once. The target "full" fails while reserving, "odd"
// is refused by preflight, "slow" gets no further than reserving and "busy" than
// the queue, until the move is cancelled or its time is up, and to "hasty" the
// pod has moved before it can be cancelled.
func (s *server) MovePod(ctx context.Context, r *connect.Request[poddv1.MovePodRequest], stream *connect.ServerStream[poddv1.MovePodResponse]) error {
	p, err := s.checkMove(r.Msg.GetPod(), r.Msg.GetTarget())
	if err != nil {
		return err
	}
	target := r.Msg.GetTarget()
	switch target {
	case "odd":
		return fmt.Errorf("%w: 2 things can't be carried", pod.ErrBlocked)
	case "mute":
		if err := stream.Send(&poddv1.MovePodResponse{Stage: string(pod.StagePreflight)}); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
	s.mu.Lock()
	m := &pod.Move{
		ID: fmt.Sprintf("m%d", len(s.moves)+1), Pod: p.record.Name(), Source: p.record.Binding.Host, Target: target,
		SourceEpoch: p.record.Binding.Epoch, State: pod.MoveRunning, Strategy: pod.Strategy(r.Msg.GetStrategy()), StartedAt: time.Now(),
	}
	for _, other := range s.moves {
		if other.Pod == m.Pod && (other.State == pod.MoveRunning || other.State == pod.MoveQueued) {
			s.mu.Unlock()
			return fmt.Errorf("%w: pod %s is being moved already (move %s)", pod.ErrConflict, m.Pod, other.ID)
		}
	}
	m.Next = p.record.Binding
	m.Next.Host = target
	if address := hostAddress[target]; address != "" {
		m.Next.Physical = netip.MustParseAddr(address)
	}
	m.Next.Label += 100
	m.Next.Epoch++
	s.moves = append(s.moves, m)
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	s.mu.Unlock()
	if slices.Contains(lingering, target) {
		if err := s.linger(ctx, m, r.Msg, stream); err != nil || m.State == pod.MoveAborted {
			return err
		}
	}

	receipt := &pod.Receipt{
		Freeze: 31200 * time.Microsecond, Excision: 18 * time.Millisecond, Insertion: 13200 * time.Microsecond,
		Total: 812 * time.Millisecond, MemoryBytes: 64 << 20, Pages: 16384, PresyncFileBytes: 1 << 20, FrozenFileBytes: 4096,
		ImageBytes: 123456, Processes: 3, Connections: 2,
	}
	if m.Strategy == pod.StrategyPostCopy {
		m.Chosen, m.Reason = m.Strategy, "it was asked for"
		m.Arrival = &pod.Arrival{Faults: 12, WorstFault: 3100 * time.Microsecond, Duration: 40 * time.Millisecond}
		receipt.CarriedBytes, receipt.PrecopyBytes, receipt.Passes = 60<<20, 50<<20, 3
		receipt.FrozenMemoryBytes, receipt.LateMemoryBytes, receipt.Predicted = 1<<20, 2<<20, 30*time.Millisecond
	}
	for i, stage := range pod.Stages {
		bytes := int64(0)
		if stage == pod.StageDump {
			bytes = 64 << 20
		}
		event := &poddv1.MovePodResponse{Stage: string(stage), Bytes: bytes, TotalBytes: bytes}
		if i > 0 { // the journal has it only after preflight
			event.Id = m.ID
		}
		if err := stream.Send(event); err != nil {
			return err
		}
		receipt.Stages = append(receipt.Stages, pod.StageTime{Stage: stage, Duration: time.Duration(i+1) * time.Millisecond, Bytes: bytes})
		if stage == pod.StageReserve && target == "full" {
			s.finish(m, func() {
				m.State, m.FailedStage, m.Error = pod.MoveAborted, stage, "exhausted: /var/lib/podd has 12 MiB left, 65 MiB are needed\n  Error (criu/pages.c:1): no space"
			})
			return stream.Send(&poddv1.MovePodResponse{Id: m.ID, Move: api.MoveToProto(m)})
		}
	}
	broken := p.main.command[0] == "hopcat" // its stream breaks before the end
	s.finish(m, func() {
		m.State, m.Stage, m.Receipt = pod.MoveDone, pod.StageRelease, receipt
		p.record.Binding = m.Next
	})
	p.main.hops.hop()
	p.main.change(func() {})
	if broken {
		return errors.New("connection reset by peer")
	}
	return stream.Send(&poddv1.MovePodResponse{Id: m.ID, Move: api.MoveToProto(m)})
}

func (s *server) finish(m *pod.Move, f func()) {
	s.change(func() { f(); m.EndedAt = time.Now() })
}

func (s *server) ListMoves(_ context.Context, r *connect.Request[poddv1.ListMovesRequest]) (*connect.Response[poddv1.ListMovesResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := &poddv1.ListMovesResponse{}
	for _, m := range slices.Backward(s.moves) {
		if r.Msg.GetPod() == "" || r.Msg.GetPod() == m.Pod {
			out.Moves = append(out.Moves, api.MoveToProto(m))
		}
	}
	return connect.NewResponse(out), nil
}

func (s *server) GetMove(_ context.Context, r *connect.Request[poddv1.GetMoveRequest]) (*connect.Response[poddv1.GetMoveResponse], error) {
	m, err := s.findMove(r.Msg.GetId())
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return connect.NewResponse(&poddv1.GetMoveResponse{Move: api.MoveToProto(m)}), nil
}

// To "mute" it does not even get an ID. lingering are targets that no move gets to by itself; they are not listed.
var lingering = []string{"slow", "busy", "hasty", "mute"}

// linger does not go on with a move until somebody cancels it, or tries to.
func (s *server) linger(ctx context.Context, m *pod.Move, r *poddv1.MovePodRequest, stream *connect.ServerStream[poddv1.MovePodResponse]) error {
	stage := pod.StageReserve
	if m.Target == "busy" {
		s.change(func() { m.State = pod.MoveQueued })
		stage = pod.StageQueued
	}
	s.change(func() { m.Stage = stage })
	for _, event := range []*poddv1.MovePodResponse{{Stage: string(pod.StagePreflight)}, {Id: m.ID, Stage: string(stage)}} {
		if err := stream.Send(event); err != nil {
			return err
		}
	}
	for name, limit := range map[string]*durationpb.Duration{"timeout": r.GetTimeout(), "max-downtime": r.GetMaxDowntime()} {
		if limit != nil {
			timer := time.AfterFunc(limit.AsDuration(), func() { s.abort(m, fmt.Sprintf("%s of %s exceeded", name, limit.AsDuration())) })
			defer timer.Stop()
		}
	}
	for {
		s.mu.Lock()
		state, late, changed := m.State, m.Held, s.changed // Held stands for a cancel that came too late
		s.mu.Unlock()
		switch {
		case state == pod.MoveAborted:
			return stream.Send(&poddv1.MovePodResponse{Id: m.ID, Move: api.MoveToProto(m)})
		case late:
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// change changes moves, and wakes whoever waits for that.
func (s *server) change(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *server) abort(m *pod.Move, reason string) {
	s.change(func() { m.State, m.FailedStage, m.Error, m.EndedAt = pod.MoveAborted, m.Stage, reason, time.Now() })
}

func (s *server) findMove(id string) (*pod.Move, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.moves {
		if m.ID == id {
			return m, nil
		}
	}
	return nil, fmt.Errorf("%w: move %q", pod.ErrNotFound, id)
}

func (s *server) CancelMove(ctx context.Context, r *connect.Request[poddv1.CancelMoveRequest]) (*connect.Response[poddv1.CancelMoveResponse], error) {
	m, err := s.findMove(r.Msg.GetId())
	switch {
	case err != nil:
		return nil, err
	case s.deaf:
		<-ctx.Done()
		return nil, ctx.Err()
	case m.State == pod.MoveAborted:
		return nil, fmt.Errorf("%w: move %s was undone before: %s", pod.ErrConflict, m.ID, m.Error)
	case m.State == pod.MoveDone || m.Target == "hasty":
		s.change(func() { m.Held = true })
		return nil, fmt.Errorf("%w: it is too late to cancel move %s: pod %s is on host %s", pod.ErrConflict, m.ID, m.Pod, m.Target)
	}
	s.abort(m, strings.TrimSuffix("cancelled: "+r.Msg.GetReason(), ": "))
	return connect.NewResponse(&poddv1.CancelMoveResponse{Move: api.MoveToProto(m)}), nil
}

func (s *server) WaitMove(ctx context.Context, r *connect.Request[poddv1.WaitMoveRequest], stream *connect.ServerStream[poddv1.WaitMoveResponse]) error {
	m, err := s.findMove(r.Msg.GetId())
	if err != nil {
		return err
	}
	for {
		s.mu.Lock()
		out, changed := &poddv1.WaitMoveResponse{Id: m.ID, Stage: string(m.Stage)}, s.changed
		ended := !m.EndedAt.IsZero()
		if ended {
			out.Move = api.MoveToProto(m)
		}
		s.mu.Unlock()
		if err := stream.Send(out); err != nil || ended {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
