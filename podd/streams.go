package podd

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	"connectrpc.com/connect"

	poddv1 "podd/api/podd/v1"
	"podd/daemon"
	"podd/namespace"
	"podd/pod"
)

// outputs finds the container whose files hold a pod's output, running or not.
func (d *Daemon) outputs(ctx context.Context, name string) (*namespace.Container, *localPod, error) {
	if p, err := d.localPod(name); err == nil {
		return p.container, p, nil
	}
	record, err := d.dir.Pod(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	container, err := d.runtime.Load(name, record.Binding.Epoch)
	return container, nil, err
}

// permitInside decides whether the caller may work in a pod, or have what is in
// it: who is in a pod that sees directories of its host is in those too. The
// error wraps pod.ErrDenied, or pod.ErrNotFound when there is no such pod.
func (d *Daemon) permitInside(ctx context.Context, name string) error {
	record, err := d.dir.Pod(ctx, name)
	if err != nil {
		return err
	}
	caller, _ := daemon.CallerFrom(ctx)
	return daemon.PermitSpec(caller, record.Spec)
}

// movedAway waits, after the output of a local pod has ended, until it is known
// why: because the pod left, or because its main command ended.
func movedAway(ctx context.Context, p *localPod) (bool, error) {
	if p == nil {
		return false, nil
	}
	select {
	case <-p.gone:
		return p.left, nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

// Logs passes on what the main command wrote.
func (s *podService) Logs(ctx context.Context, r *connect.Request[poddv1.LogsRequest], stream *connect.ServerStream[poddv1.LogsResponse]) error {
	container, p, err := s.d.outputs(ctx, r.Msg.GetPod())
	if err != nil {
		return err
	}
	options := namespace.LogOptions{From: positionFromProto(r.Msg.GetFrom()), Tail: int(r.Msg.GetTail()), Follow: r.Msg.GetFollow()}
	err = container.Logs(ctx, options, func(o namespace.Output) error {
		return stream.Send(&poddv1.LogsResponse{Stdout: o.Stdout, Stderr: o.Stderr, Position: positionToProto(o.Position)})
	})
	if err != nil || !options.Follow {
		return err
	}
	moved, err := movedAway(ctx, p)
	if err == nil && moved {
		err = stream.Send(&poddv1.LogsResponse{Moved: true})
	}
	return err
}

func positionFromProto(p *poddv1.OutputPosition) *namespace.Position {
	if p == nil {
		return nil
	}
	return &namespace.Position{Stdout: p.GetStdout(), Stderr: p.GetStderr()}
}

func positionToProto(p namespace.Position) *poddv1.OutputPosition {
	return &poddv1.OutputPosition{Stdout: p.Stdout, Stderr: p.Stderr}
}

// input is what a client sends to a command: the requests of Exec and Attach
// have it in common.
type input interface {
	GetStdin() []byte
	GetWindow() *poddv1.WindowSize
	GetEndOfInput() bool
}

// passInput carries a client's input to a command until either ends. It has
// nobody to report to: whatever ends it also ends the reading of the output.
func passInput(session *namespace.Session, receive func() (input, error)) {
	for {
		in, err := receive()
		if err != nil {
			return
		}
		switch {
		case in.GetWindow() != nil:
			err = session.Resize(windowSize(in.GetWindow()))
		case in.GetEndOfInput():
			err = session.CloseInput()
		default:
			_, err = session.Write(in.GetStdin())
		}
		if err != nil {
			return
		}
	}
}

func windowSize(w *poddv1.WindowSize) (rows, columns uint16) {
	return uint16(min(w.GetRows(), math.MaxUint16)), uint16(min(w.GetColumns(), math.MaxUint16))
}

// Attach joins the main command: its output comes from its log, its input goes
// through a session. A command that has ended gives the rest of its output.
func (s *podService) Attach(ctx context.Context, stream *connect.BidiStream[poddv1.AttachRequest, poddv1.AttachResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return fmt.Errorf("%w: the stream does not begin with a start", pod.ErrInvalid)
	}
	if err := s.d.permitInside(ctx, start.GetPod()); err != nil {
		return err
	}
	container, p, err := s.d.outputs(ctx, start.GetPod())
	if err != nil {
		return err
	}
	moved := &poddv1.AttachResponse{Response: &poddv1.AttachResponse_Moved{Moved: true}}
	session, err := container.Attach(ctx)
	switch {
	case errors.Is(err, namespace.ErrInterrupted) && p != nil:
		if err := p.awaitMove(ctx); err != nil {
			return err
		}
		return stream.Send(moved)
	case errors.Is(err, pod.ErrPhase), errors.Is(err, pod.ErrNotFound):
		// It has ended, or its init is about to; what it wrote is there.
	case err != nil:
		return err
	}

	follow, interrupt := context.WithCancelCause(ctx)
	defer interrupt(nil)
	// What a command answers comes after the position that is read from, which is
	// the first thing that Logs emits.
	beginInput := func() {}
	if session != nil {
		defer session.Close()
		if w := start.GetWindow(); w != nil {
			if err := session.Resize(windowSize(w)); err != nil && !errors.Is(err, namespace.ErrInterrupted) {
				return err
			}
		}
		beginInput = sync.OnceFunc(func() { go passInput(session, func() (input, error) { return stream.Receive() }) })
		reader := make(chan struct{})
		go func() {
			defer close(reader)
			_, err := session.Read() // from the main command comes only the end
			if _, running := container.PID(); running {
				interrupt(err) // a move; when the pod ends the log does too
			}
		}()
		defer func() { session.Close(); <-reader }()
	}
	options := namespace.LogOptions{From: positionFromProto(start.GetFrom()), Follow: true}
	err = container.Logs(follow, options, func(o namespace.Output) error {
		beginInput()
		response := &poddv1.AttachResponse{Position: positionToProto(o.Position)}
		switch {
		case o.Stdout != nil:
			response.Response = &poddv1.AttachResponse_Stdout{Stdout: o.Stdout}
		case o.Stderr != nil:
			response.Response = &poddv1.AttachResponse_Stderr{Stderr: o.Stderr}
		}
		return stream.Send(response)
	})
	if session != nil {
		moved.StdinAccepted = session.Accepted()
	}
	if ctx.Err() == nil && errors.Is(context.Cause(follow), namespace.ErrInterrupted) {
		return stream.Send(moved)
	}
	if err != nil {
		return err
	}
	if left, err := movedAway(ctx, p); err != nil || left {
		return errors.Join(err, stream.Send(moved))
	}
	code, err := container.Wait(ctx)
	if err != nil {
		return err
	}
	if p != nil {
		defer p.collect()
	}
	return stream.Send(&poddv1.AttachResponse{Response: &poddv1.AttachResponse_ExitCode{ExitCode: int32(code)}})
}

// Exec runs another command in a pod, or goes on with one that was interrupted.
// The command outlives a lost connection: the client resumes it by its session.
func (s *podService) Exec(ctx context.Context, stream *connect.BidiStream[poddv1.ExecRequest, poddv1.ExecResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return fmt.Errorf("%w: the stream does not begin with a start", pod.ErrInvalid)
	}
	if err := s.d.permitInside(ctx, start.GetPod()); err != nil {
		return err
	}
	p, err := s.d.localPod(start.GetPod())
	if err != nil {
		return err
	}
	moved := &poddv1.ExecResponse{Response: &poddv1.ExecResponse_Moved{Moved: true}}
	session, err := openSession(ctx, p.container, start)
	if errors.Is(err, namespace.ErrInterrupted) {
		if err := p.awaitMove(ctx); err != nil {
			return err
		}
		return stream.Send(moved)
	}
	if err != nil {
		return err
	}
	defer session.Close()
	defer context.AfterFunc(ctx, func() { session.Close() })()
	if err := stream.Send(&poddv1.ExecResponse{Response: &poddv1.ExecResponse_Session{Session: session.ID()}}); err != nil {
		return err
	}
	go passInput(session, func() (input, error) { return stream.Receive() })
	for {
		event, err := session.Read()
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, namespace.ErrInterrupted):
			if _, running := p.container.PID(); !running {
				if left, err := movedAway(ctx, p); err != nil {
					return err
				} else if !left {
					return fmt.Errorf("pod %s: %w: it has ended, and the command with it", p.name, pod.ErrPhase)
				}
			}
			moved.StdinAccepted = session.Accepted()
			return stream.Send(moved)
		case err != nil:
			return err
		}
		response := &poddv1.ExecResponse{}
		switch {
		case event.Exited:
			response.Response = &poddv1.ExecResponse_ExitCode{ExitCode: int32(event.ExitCode)}
		case event.Stdout != nil:
			response.Response = &poddv1.ExecResponse_Stdout{Stdout: event.Stdout}
		default:
			response.Response = &poddv1.ExecResponse_Stderr{Stderr: event.Stderr}
		}
		if err := stream.Send(response); err != nil || event.Exited {
			return err
		}
	}
}

func openSession(ctx context.Context, container *namespace.Container, start *poddv1.ExecStart) (*namespace.Session, error) {
	rows, columns := windowSize(start.GetWindow())
	if id := start.GetSession(); id != "" {
		session, err := container.Session(ctx, id)
		if err == nil && start.GetWindow() != nil {
			if err := session.Resize(rows, columns); err != nil {
				return nil, errors.Join(err, session.Close())
			}
		}
		return session, err
	}
	return container.Exec(ctx, namespace.ExecConfig{
		Command: start.GetCommand(), Env: start.GetEnv(), User: start.GetUser(), WorkDir: start.GetWorkDir(),
		TTY: start.GetTty(), Stdin: start.GetStdin(), Rows: rows, Columns: columns,
	})
}
