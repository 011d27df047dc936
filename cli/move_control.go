package cli

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

func (p *podctl) moveWaitCommand() *command {
	return &command{
		name: "wait", args: "ID", min: 1, max: 1, completes: []completer{completeOpenMoves, completeNothing},
		usage: "follow a move to its end", notFound: "podctl move ls lists the moves",
		description: `Shows the stages of a move that somebody began, and in the end its receipt, as
podctl move does; the exit code is 0 if the pod has moved. The stages of a frozen
pod are not known here. Ctrl-C ends podctl, not the move.`,
		examples: []string{
			"podctl move wait 4f1c09",
			"podctl move wait $(podctl move --detach alice b) -o json",
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "do not show the stages while they last"},
			outputFlag(),
		},
		action: func(c *cli.Context) error {
			format, err := p.outputFormat(c)
			if err != nil {
				return err
			}
			client, err := p.client()
			if err != nil {
				return err
			}
			id := c.Args().First()
			response, err := client.moves.GetMove(c.Context, connect.NewRequest(&poddv1.GetMoveRequest{Id: id}))
			if err != nil {
				return fmt.Errorf("waiting for move %s: %w", id, err)
			}
			m := response.Msg.GetMove()
			display := p.newProgress(format, c.Bool("quiet"))
			display.heading = fmt.Sprintf("moving %s to %s", m.GetPod(), m.GetTarget())
			run := &moveRun{p: p, client: client, display: display, id: id}
			err = run.follow(c.Context, func(ctx context.Context, emit func(moveEvent)) error { return client.waitMove(ctx, id, nil, emit) })
			return p.reportMove(c.Context, client, format, run, m.GetPod(), m.GetTarget(), err)
		},
	}
}

func (p *podctl) moveCancelCommand() *command {
	return &command{
		name: "cancel", args: "ID", min: 1, max: 1, completes: []completer{completeOpenMoves, completeNothing},
		usage: "undo a move that is under way", notFound: "podctl move ls lists the moves",
		description: `Has a move undone that is under way or queued, and returns when the pod runs
where it was, with its connections. Once the target holds the pod it is too late.`,
		examples: []string{
			"podctl move cancel 4f1c09",
			"podctl move cancel --reason maintenance 4f1c09",
			"podctl move --cancel 4f1c09",
		},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "reason", Usage: "`TEXT` for the journal and for whoever waits for the move"},
			outputFlag(),
		},
		action: func(c *cli.Context) error {
			format, err := p.outputFormat(c)
			if err != nil {
				return err
			}
			client, err := p.client()
			if err != nil {
				return err
			}
			return p.cancelMove(c.Context, client, format, c.Args().First(), c.String("reason"))
		},
	}
}

// cancelMove has a move undone and says what has become of the pod.
func (p *podctl) cancelMove(ctx context.Context, client *client, f format, id, reason string) error {
	response, err := client.moves.CancelMove(ctx, connect.NewRequest(&poddv1.CancelMoveRequest{Id: id, Reason: reason}))
	if err != nil {
		err = fmt.Errorf("cancelling move %s: %w", id, err)
		return &hintedError{err, "podctl move ls lists the moves, and how they ended"}
	}
	v := viewMove(response.Msg.GetMove())
	switch {
	case f != formatTable && f != formatWide:
		err = p.printMove(f, v)
	case v.undoing():
		_, err = fmt.Fprintf(p.stdout, "move %s will not take place; host %s has yet to let %s go on\n", v.ID, v.Source, v.Pod)
	default:
		_, err = fmt.Fprintf(p.stdout, "move %s is undone at stage %s: %s goes on running on %s\n", v.ID, v.FailedStage, v.Pod, v.Source)
	}
	return err
}

// undoing says that the source has yet to undo the move.
func (v moveView) undoing() bool { return v.State == pod.MoveAborted && v.EndedAt.IsZero() }
