package cli_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"connectrpc.com/connect"

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
	out := &poddv1.CheckMoveResponse{MemoryBytes: 64 << 20, FileBytes: 3 << 10, Processes: 3, Connections: 1}
	if r.Msg.GetTarget() == "odd" {
		out.Blockers = api.BlockersToProto([]pod.Blocker{
			multipathBlocker,
			{Descriptor: -1, Problem: "kernel 5.10 on odd has no time namespaces", Remedy: "choose a host with 6.1 or newer"},
		})
	}
	return connect.NewResponse(out), nil
}

// MovePod moves a pod at once. The target "full" fails while reserving, "odd"
// is refused by preflight.
func (s *server) MovePod(_ context.Context, r *connect.Request[poddv1.MovePodRequest], stream *connect.ServerStream[poddv1.MovePodResponse]) error {
	p, err := s.checkMove(r.Msg.GetPod(), r.Msg.GetTarget())
	if err != nil {
		return err
	}
	target := r.Msg.GetTarget()
	if target == "odd" {
		return fmt.Errorf("%w: 2 things can't be carried", pod.ErrBlocked)
	}
	s.mu.Lock()
	m := &pod.Move{
		ID: fmt.Sprintf("m%d", len(s.moves)+1), Pod: p.record.Name(), Source: p.record.Binding.Host, Target: target,
		SourceEpoch: p.record.Binding.Epoch, State: pod.MoveRunning, StartedAt: time.Now(),
	}
	m.Next = p.record.Binding
	m.Next.Host, m.Next.Physical = target, netip.MustParseAddr(hostAddress[target])
	m.Next.Label += 100
	m.Next.Epoch++
	s.moves = append(s.moves, m)
	s.mu.Unlock()

	receipt := &pod.Receipt{
		Freeze: 31200 * time.Microsecond, Excision: 18 * time.Millisecond, Insertion: 13200 * time.Microsecond,
		Total: 812 * time.Millisecond, MemoryBytes: 64 << 20, Pages: 16384, PresyncFileBytes: 1 << 20, FrozenFileBytes: 4096,
		ImageBytes: 123456, Processes: 3, Connections: 2,
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
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	m.EndedAt = time.Now()
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
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range s.moves {
		if m.ID == r.Msg.GetId() {
			return connect.NewResponse(&poddv1.GetMoveResponse{Move: api.MoveToProto(m)}), nil
		}
	}
	return nil, fmt.Errorf("%w: move %q", pod.ErrNotFound, r.Msg.GetId())
}
