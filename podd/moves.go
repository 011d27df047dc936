package podd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/durationpb"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/daemon"
	"podd/directory"
	"podd/pod"
)

type moveService struct {
	d *Daemon
}

func (s *moveService) CheckMove(ctx context.Context, r *connect.Request[poddv1.CheckMoveRequest]) (*connect.Response[poddv1.CheckMoveResponse], error) {
	order, err := orderOf(&poddv1.MovePodRequest{
		Pod: r.Msg.GetPod(), Target: r.Msg.GetTarget(), Strategy: r.Msg.GetStrategy(), MaxDowntime: r.Msg.GetMaxDowntime(),
	})
	if err != nil {
		return nil, err
	}
	check, err := s.d.checkMove(ctx, order)
	if err != nil {
		return nil, err
	}
	chosen, reason, err := s.d.foresee(order, check.memoryBytes)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.CheckMoveResponse{
		Blockers: api.BlockersToProto(check.blockers), MemoryBytes: check.memoryBytes, FileBytes: check.fileBytes,
		Processes: int32(check.processes), Connections: int32(check.connections), Strategy: string(chosen), Reason: reason,
	}), nil
}

// errNobody ends a move that nobody could follow.
var errNobody = errors.New("the caller went away before it was told the move's ID")

// MovePod carries out a move and passes its progress on. The move belongs to
// the daemon: it goes on when the caller goes away, if that was told the ID.
func (s *moveService) MovePod(ctx context.Context, r *connect.Request[poddv1.MovePodRequest], stream *connect.ServerStream[poddv1.MovePodResponse]) error {
	order, err := orderOf(r.Msg)
	if err != nil {
		return err
	}
	// Room for more reports than a move makes between two sends; one that
	// does not fit is not worth waiting for.
	reports := make(chan progress, 64)
	type outcome struct {
		move *pod.Move
		err  error
	}
	done := make(chan outcome, 1)
	moving, abandon := context.WithCancelCause(s.d.ctx)
	s.d.background(func(context.Context) {
		defer abandon(nil)
		move, err := s.d.movePod(moving, order, func(p progress) {
			select {
			case reports <- p:
			default:
			}
		})
		done <- outcome{move, err}
	})
	told := false
	send := func(m *poddv1.MovePodResponse) error {
		err := stream.Send(m)
		told = told || err == nil && m.GetId() != ""
		return err
	}
	follow := func() error {
		for {
			select {
			case p := <-reports:
				if err := send(progressToProto(p)); err != nil {
					return err
				}
			case o := <-done:
				for len(reports) > 0 {
					if err := send(progressToProto(<-reports)); err != nil {
						return err
					}
				}
				if o.move != nil {
					if err := send(&poddv1.MovePodResponse{Id: o.move.ID, Stage: string(o.move.Stage), Move: api.MoveToProto(o.move)}); err != nil {
						return err
					}
				}
				return o.err
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	err = follow()
	if !told {
		abandon(errNobody)
	}
	return err
}

// orderOf reads a request to move a pod.
func orderOf(r *poddv1.MovePodRequest) (moveOrder, error) {
	strategy, err := pod.ParseStrategy(r.GetStrategy())
	if err != nil {
		return moveOrder{}, err
	}
	o := moveOrder{pod: r.GetPod(), target: r.GetTarget(), strategy: strategy}
	for _, limit := range []struct {
		name  string
		given *durationpb.Duration
		field *time.Duration
	}{{"timeout", r.GetTimeout(), &o.timeout}, {"max-downtime", r.GetMaxDowntime(), &o.maxDowntime}} {
		if limit.given == nil {
			continue
		}
		if *limit.field = limit.given.AsDuration(); *limit.field <= 0 || limit.given.CheckValid() != nil {
			return o, fmt.Errorf("%w: %s of %s: want a time above 0", pod.ErrInvalid, limit.name, *limit.field)
		}
	}
	return o, nil
}

func progressToProto(p progress) *poddv1.MovePodResponse {
	return &poddv1.MovePodResponse{
		Id: p.move, Stage: string(p.stage), Bytes: p.bytes, TotalBytes: p.total, Elapsed: durationpb.New(p.elapsed),
	}
}

// undoTimeout bounds the wait for the source to let a cancelled move's pod go
// on, and for what is left of a committed move.
const undoTimeout = 30 * time.Second

// CancelMove decides that a move is undone, on whatever hosts it goes on: both
// follow its record. It returns when the pod runs as before.
func (s *moveService) CancelMove(ctx context.Context, r *connect.Request[poddv1.CancelMoveRequest]) (*connect.Response[poddv1.CancelMoveResponse], error) {
	id := r.Msg.GetId()
	m, err := s.d.dir.Move(ctx, id)
	if err != nil {
		return nil, err
	}
	if m.State == pod.MoveAborted && !m.Undoing() {
		return nil, fmt.Errorf("%w: move %s was undone before: %s", pod.ErrConflict, id, m.Error)
	}
	cause := "cancelled"
	if caller, ok := daemon.CallerFrom(ctx); ok {
		cause += " by " + caller.String()
	}
	if r.Msg.GetReason() != "" {
		cause += ": " + r.Msg.GetReason()
	}
	switch err := s.d.dir.CancelMove(ctx, id, m.Stage, errors.New(cause)); {
	case errors.Is(err, directory.ErrCommitted):
		return nil, fmt.Errorf("%w: it is too late to cancel move %s: pod %s is on host %s", pod.ErrConflict, id, m.Pod, m.Target)
	case err != nil:
		return nil, err
	}
	s.d.log.Info("move cancelled", "move", id, "pod", m.Pod, "reason", r.Msg.GetReason())
	ctx, cancel := context.WithTimeout(ctx, undoTimeout)
	defer cancel()
	for m = range s.d.dir.WatchMove(ctx, id) {
		if !m.Undoing() {
			break
		}
	}
	return connect.NewResponse(&poddv1.CancelMoveResponse{Move: api.MoveToProto(m)}), nil
}

// WaitMove tells each stage that the journal shows, and in the end the outcome.
func (s *moveService) WaitMove(ctx context.Context, r *connect.Request[poddv1.WaitMoveRequest], stream *connect.ServerStream[poddv1.WaitMoveResponse]) error {
	id := r.Msg.GetId()
	last, err := s.d.dir.Move(ctx, id)
	if err != nil {
		return err
	}
	waiting, stop := context.WithCancel(ctx)
	defer stop()
	defer context.AfterFunc(s.d.ctx, stop)()
	moves := s.d.dir.WatchMove(waiting, id)
	var late <-chan time.Time
	told := pod.Stage("")
	for ended := false; !ended; {
		select {
		case m, ok := <-moves:
			if !ok {
				if s.d.ctx.Err() != nil {
					return s.d.stopping()
				}
				return context.Cause(waiting)
			}
			last = m
		case <-late:
			ended = true
		}
		decided := last.State == pod.MoveCommitted || last.Undoing()
		ended = ended || last.State == pod.MoveDone || last.State == pod.MoveAborted && !last.Undoing()
		if decided && late == nil {
			late = time.After(undoTimeout)
		}
		if last.Stage == told && !ended {
			continue
		}
		told = last.Stage
		out := &poddv1.WaitMoveResponse{Id: id, Stage: string(told), Elapsed: durationpb.New(time.Since(last.StartedAt))}
		if ended {
			out.Move = api.MoveToProto(last)
		}
		if err := stream.Send(out); err != nil {
			return err
		}
	}
	return nil
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
