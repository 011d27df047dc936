package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// tickInterval is how often the elapsed time on a terminal is drawn anew, and
// answerTimeout bounds the wait for the reason why a move that is over was not
// undone.
const (
	tickInterval  = 100 * time.Millisecond
	answerTimeout = 2 * time.Second
)

// moveEvent is one thing that podd says about a move.
type moveEvent struct {
	id           string
	stage        pod.Stage
	bytes, total int64
	move         *poddv1.Move // how it ended
}

// moveRun is a move that podctl follows.
type moveRun struct {
	p       *podctl
	client  *client
	display *progress
	// mayCancel says that the first signal has the move undone; if it is
	// false, that already ends podctl. detach leaves the move to podd as soon
	// as its ID is known.
	mayCancel, detach bool

	id     string
	result *poddv1.Move
	// signal is the first that came, 0 if none did.
	signal unix.Signal
	// cancelling says that podd was asked to undo the move.
	cancelling bool
}

// follow shows what produce emits until the move is over, the user leaves or
// something fails.
func (r *moveRun) follow(ctx context.Context, produce func(ctx context.Context, emit func(moveEvent)) error) error {
	var work sync.WaitGroup
	defer work.Wait()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	signals := make(chan unix.Signal, 8)
	release := r.p.signals.take(func(s unix.Signal) {
		select {
		case signals <- s:
		default: // two are enough
		}
	})
	defer release()
	events, done, answered := make(chan moveEvent), make(chan error, 1), make(chan error, 1)
	answers := answered
	work.Go(func() {
		done <- produce(ctx, func(e moveEvent) {
			select {
			case events <- e:
			case <-ctx.Done():
			}
		})
	})
	cancel := func() {
		if r.signal != 0 && r.id != "" && !r.cancelling {
			r.cancelling = true
			work.Go(func() {
				_, err := r.client.moves.CancelMove(ctx, connect.NewRequest(&poddv1.CancelMoveRequest{
					Id: r.id, Reason: unix.SignalName(r.signal) + " to podctl",
				}))
				answered <- err
			})
		}
	}
	// Time passes on the display also while podd has nothing to say.
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	var refused error
	for {
		select {
		case <-ticker.C:
			r.display.tick()
		case e := <-events:
			r.note(e)
			if r.detach && r.id != "" && r.signal == 0 {
				return nil
			}
			cancel()
		case s := <-signals:
			if r.signal != 0 || !r.mayCancel || s == unix.SIGHUP {
				r.display.finish(false)
				r.leave()
				return exitStatus(128 + int(s))
			}
			r.signal = s
			r.display.say("podctl: having the move undone; once more leaves it to podd")
			cancel()
		case err := <-answers:
			answers = nil
			if refused = err; err != nil {
				r.display.say("podctl: the move is not undone")
			}
		case err := <-done:
			if r.cancelling && answers != nil {
				// The same event ends both calls.
				select {
				case refused = <-answers:
				case <-time.After(answerTimeout):
				}
			}
			r.display.finish(err != nil || r.result.GetState() == string(pod.MoveAborted))
			if refused != nil {
				r.p.printError(fmt.Errorf("cancelling the move: %w", refused))
			}
			return err
		}
	}
}

// note takes in what podd says.
func (r *moveRun) note(e moveEvent) {
	if e.id != "" {
		r.id = e.id
	}
	switch {
	case e.move != nil:
		r.result = e.move
	case e.stage != "":
		r.display.update(e.stage, e.bytes, e.total)
	}
}

// leave says what becomes of a move that podctl no longer follows.
func (r *moveRun) leave() {
	switch {
	case r.id == "":
		fmt.Fprintln(r.p.stderr, "podctl: the move had not begun; podd gives it up")
	case r.cancelling:
		fmt.Fprintf(r.p.stderr, "podctl: the move is undone without podctl: podctl move wait %s tells how it ends\n", r.id)
	default:
		fmt.Fprintf(r.p.stderr, "podctl: the move goes on without podctl: podctl move wait %s follows it\n", r.id)
	}
}

// carryOut has a pod moved and emits how it goes. When the stream breaks the
// move goes on, so it is followed as any other.
func (c *client) carryOut(ctx context.Context, request *poddv1.MovePodRequest, emit func(moveEvent)) error {
	stream, err := c.moves.MovePod(ctx, connect.NewRequest(request))
	if err != nil {
		return err
	}
	defer stream.Close()
	id, ended := "", false
	for stream.Receive() {
		m := stream.Msg()
		if m.GetId() != "" {
			id = m.GetId()
		}
		ended = ended || m.GetMove() != nil
		emit(moveEvent{id: m.GetId(), stage: pod.Stage(m.GetStage()), bytes: m.GetBytes(), total: m.GetTotalBytes(), move: m.GetMove()})
	}
	err = stream.Err()
	switch {
	case ended:
		return nil
	case err == nil:
		err = errNoResult
	}
	if id == "" || ctx.Err() != nil {
		return err
	}
	return c.waitMove(ctx, id, err, emit)
}

// errNoResult means that podd's answer is not complete.
var errNoResult = errors.New("podd ended the stream without a result")

// waitMove emits what the journal says of a move until it is over, across
// restarts of podd. cause is why it has to ask, nil if the user did.
func (c *client) waitMove(ctx context.Context, id string, cause error, emit func(moveEvent)) error {
	attempts := newAttempts()
	for {
		attempts.begin()
		ended, err := c.waitOnce(ctx, id, emit)
		if ended {
			return nil
		}
		if errors.Is(err, pod.ErrNotFound) && cause != nil {
			return cause
		}
		if cause == nil && (!errors.Is(err, pod.ErrUnavailable) && !errors.Is(err, errNoResult) || !c.reached.Load()) {
			return err
		}
		if err := attempts.wait(ctx, err); err != nil {
			return fmt.Errorf("move %s: %w", id, err)
		}
	}
}

func (c *client) waitOnce(ctx context.Context, id string, emit func(moveEvent)) (ended bool, err error) {
	stream, err := c.moves.WaitMove(ctx, connect.NewRequest(&poddv1.WaitMoveRequest{Id: id}))
	if err != nil {
		return false, err
	}
	defer stream.Close()
	for stream.Receive() {
		m := stream.Msg()
		emit(moveEvent{id: id, stage: pod.Stage(m.GetStage()), move: m.GetMove()})
		ended = ended || m.GetMove() != nil
	}
	if err = stream.Err(); err == nil {
		err = errNoResult
	}
	return ended, err
}
