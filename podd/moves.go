package podd

import (
	"context"
	"slices"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/pod"
)

type moveService struct {
	poddv1connect.UnimplementedMoveServiceHandler
	d *Daemon
}

func (s *moveService) CheckMove(ctx context.Context, r *connect.Request[poddv1.CheckMoveRequest]) (*connect.Response[poddv1.CheckMoveResponse], error) {
	check, err := s.d.checkMove(ctx, r.Msg.GetPod(), r.Msg.GetTarget())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.CheckMoveResponse{
		Blockers: api.BlockersToProto(check.blockers), MemoryBytes: check.memoryBytes, FileBytes: check.fileBytes,
		Processes: int32(check.processes), Connections: int32(check.connections),
	}), nil
}

// MovePod carries out a move and passes its progress on. The move belongs to
// the daemon: it goes on when the caller goes away.
func (s *moveService) MovePod(ctx context.Context, r *connect.Request[poddv1.MovePodRequest], stream *connect.ServerStream[poddv1.MovePodResponse]) error {
	// Room for more reports than a move makes between two sends; one that
	// does not fit is not worth waiting for.
	reports := make(chan progress, 64)
	type outcome struct {
		move *pod.Move
		err  error
	}
	done := make(chan outcome, 1)
	s.d.background(func(daemon context.Context) {
		move, err := s.d.movePod(daemon, r.Msg.GetPod(), r.Msg.GetTarget(), func(p progress) {
			select {
			case reports <- p:
			default:
			}
		})
		done <- outcome{move, err}
	})
	for {
		select {
		case p := <-reports:
			// A caller that has gone is noticed below; the move goes on.
			if err := stream.Send(progressToProto(p)); err != nil {
				return err
			}
		case o := <-done:
			for len(reports) > 0 {
				if err := stream.Send(progressToProto(<-reports)); err != nil {
					return err
				}
			}
			if o.move != nil {
				if err := stream.Send(&poddv1.MovePodResponse{Id: o.move.ID, Stage: string(o.move.Stage), Move: api.MoveToProto(o.move)}); err != nil {
					return err
				}
			}
			return o.err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func progressToProto(p progress) *poddv1.MovePodResponse {
	return &poddv1.MovePodResponse{
		Id: p.move, Stage: string(p.stage), Bytes: p.bytes, TotalBytes: p.total, Elapsed: durationpb.New(p.elapsed),
	}
}

func (s *moveService) ListMoves(ctx context.Context, r *connect.Request[poddv1.ListMovesRequest]) (*connect.Response[poddv1.ListMovesResponse], error) {
	moves, err := s.d.dir.Moves(ctx)
	if err != nil {
		return nil, err
	}
	response := &poddv1.ListMovesResponse{}
	for _, m := range slices.Backward(moves) { // newest first
		if r.Msg.GetPod() == "" || m.Pod == r.Msg.GetPod() {
			response.Moves = append(response.Moves, api.MoveToProto(m))
		}
	}
	return connect.NewResponse(response), nil
}

func (s *moveService) GetMove(ctx context.Context, r *connect.Request[poddv1.GetMoveRequest]) (*connect.Response[poddv1.GetMoveResponse], error) {
	m, err := s.d.dir.Move(ctx, r.Msg.GetId())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.GetMoveResponse{Move: api.MoveToProto(m)}), nil
}
