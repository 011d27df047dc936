package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// tickInterval is how often the elapsed time on a terminal is drawn anew.
const tickInterval = 100 * time.Millisecond

// exitNotMovable is move --dry-run's verdict on a pod that can't be moved.
const exitNotMovable = 1

func (p *podctl) moveCommand() *command {
	return &command{
		name: "move", aliases: []string{"mv", "migrate"}, category: "Moves", args: "POD HOST", min: 2, max: 2,
		completes: []completer{completePods, completeHosts, completeNothing},
		notFound:  "podctl ps -a lists the pods, podctl host ls the hosts",
		usage:     "move a pod to another host while it runs",
		description: `Moves a pod that runs, its memory and its private files, to another host. Its
processes go on where they were, its addresses and names stay, and its TCP
connections live on. When the move fails before the other host has taken over,
the pod goes on running where it was.

Shows each stage while it lasts, and in the end a receipt: freeze is how long no
process of the pod ran, excision how long it took from the freeze until the image
was complete on the target, and insertion from there until the pod ran.

--dry-run only checks whether the pod can be moved, and says what is in the way;
the exit code is 0 if it can and 1 if it can't.`,
		examples: []string{
			"podctl move alice b",
			"podctl move --dry-run alice b",
			"podctl move -o json alice b | jq .receipt.freezeMs",
			"podctl move ls",
			"podctl move show 4f1c09",
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Usage: "only say whether the pod can be moved, and what is in the way"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "do not show the stages while they last"},
			outputFlag(),
		},
		subcommands: []*command{p.moveListCommand(), p.moveShowCommand()},
		action: func(c *cli.Context) error {
			format, err := p.outputFormat(c)
			if err != nil {
				return err
			}
			client, err := p.client()
			if err != nil {
				return err
			}
			name, target := c.Args().Get(0), c.Args().Get(1)
			if c.Bool("dry-run") {
				return p.checkMove(c.Context, client, format, name, target)
			}
			return p.move(c.Context, client, format, name, target, c.Bool("quiet"))
		},
	}
}

// move moves a pod, shows how it goes and prints the receipt.
func (p *podctl) move(ctx context.Context, client *client, f format, name, target string, quiet bool) error {
	display := p.newProgress(f, quiet)
	display.heading = fmt.Sprintf("moving %s to %s", name, target)
	id, result, err := client.follow(ctx, name, target, display)
	failed := err != nil || result.GetState() == string(pod.MoveAborted)
	display.finish(failed)

	if err != nil && ctx.Err() != nil && id != "" {
		fmt.Fprintf(p.stderr, "podctl: the move goes on without podctl: podctl move show %s tells how it stands\n", id)
	}
	if err != nil {
		err = fmt.Errorf("moving %s to %s: %w", name, target, err)
		if errors.Is(err, pod.ErrBlocked) {
			p.printError(err)
			return p.printObstacles(ctx, client, name, target)
		}
		return err
	}
	v := viewMove(result)
	if f != formatTable && f != formatWide || !failed {
		if err := p.printMove(f, v); err != nil {
			return err
		}
	}
	if failed {
		p.printError(moveFailure(v))
		p.printWhereabouts(ctx, client, name)
		return exitStatus(exitError)
	}
	return nil
}

// moveFailure is the error of a move that was aborted.
func moveFailure(v moveView) error {
	stage := v.FailedStage
	if stage == "" {
		stage = v.Stage
	}
	reason := v.Error
	if reason == "" {
		reason = "no reason was recorded"
	}
	return fmt.Errorf("moving %s to %s: stage %s failed: %s", v.Pod, v.Target, stage, strings.TrimRight(reason, "\n"))
}

// printWhereabouts says where a pod runs after a move that failed.
func (p *podctl) printWhereabouts(ctx context.Context, client *client, name string) {
	response, err := client.pods.GetPod(ctx, connect.NewRequest(&poddv1.GetPodRequest{Pod: name}))
	if err != nil {
		fmt.Fprintf(p.stderr, "podctl: where %s is now can't be told: %v\n", name, err)
		return
	}
	switch v := viewPod(response.Msg.GetPod()); {
	case v.Phase.Live():
		fmt.Fprintf(p.stderr, "podctl: %s goes on running on %s\n", name, v.Host)
	default:
		fmt.Fprintf(p.stderr, "podctl: %s is %s on %s\n", name, v.phase(), v.Host)
	}
}

// printObstacles says what is in the way of a move that preflight refused.
func (p *podctl) printObstacles(ctx context.Context, client *client, name, target string) error {
	check, err := client.checkMove(ctx, name, target)
	if err == nil && len(check.Blockers) > 0 {
		if err := printBlockers(p.stderr, check.Blockers); err != nil {
			return err
		}
	}
	p.printWhereabouts(ctx, client, name)
	return exitStatus(exitError)
}

// follow starts a move and feeds the display until the move is over. When the
// stream breaks the move goes on, so follow asks how it stands. The id is
// known as soon as podd has accepted the move.
func (c *client) follow(ctx context.Context, name, target string, display *progress) (id string, result *poddv1.Move, err error) {
	// Time passes on the display also while podd has nothing to say.
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	events := make(chan *poddv1.MovePodResponse)
	var streamErr error
	go func() {
		defer close(events)
		stream, err := c.moves.MovePod(ctx, connect.NewRequest(&poddv1.MovePodRequest{Pod: name, Target: target}))
		if err != nil {
			streamErr = err
			return
		}
		defer stream.Close()
		for stream.Receive() {
			events <- stream.Msg()
		}
		streamErr = stream.Err()
	}()
	// The loop below ends only when the channel is closed: it waits for the goroutine.
	for open := true; open; {
		var event *poddv1.MovePodResponse
		select {
		case <-ticker.C:
			display.tick()
			continue
		case event, open = <-events:
		}
		if event == nil {
			continue
		}
		if event.GetId() != "" {
			id = event.GetId()
		}
		if event.GetMove() != nil {
			result = event.GetMove()
		}
		if event.GetStage() != "" {
			display.update(pod.Stage(event.GetStage()), event.GetBytes(), event.GetTotalBytes())
		}
	}
	switch {
	case result != nil:
		return id, result, nil
	case id == "" && streamErr == nil:
		return "", nil, errors.New("podd ended the stream without a result")
	case id == "":
		return "", nil, streamErr
	}
	result, err = c.outcome(ctx, id, streamErr, display)
	return id, result, err
}

// outcome asks how a move stands until it is over. cause is why it has to ask.
func (c *client) outcome(ctx context.Context, id string, cause error, display *progress) (*poddv1.Move, error) {
	if cause == nil {
		cause = errors.New("podd ended the stream without a result")
	}
	attempts := newAttempts()
	for {
		attempts.begin()
		response, err := c.moves.GetMove(ctx, connect.NewRequest(&poddv1.GetMoveRequest{Id: id}))
		if err == nil {
			switch m := response.Msg.GetMove(); pod.MoveState(m.GetState()) {
			case pod.MoveDone, pod.MoveCommitted, pod.MoveAborted:
				return m, nil
			default:
				display.update(pod.Stage(m.GetStage()), 0, 0)
			}
		} else if errors.Is(err, pod.ErrNotFound) {
			return nil, cause
		}
		if err := attempts.wait(ctx, cause); err != nil {
			return nil, fmt.Errorf("move %s: %w", id, err)
		}
	}
}

// newProgress chooses how the stages are shown: live on a terminal, as lines
// otherwise, not at all where nobody would read them.
func (p *podctl) newProgress(f format, quiet bool) *progress {
	display := &progress{w: p.stderr, now: time.Now, live: isTerminal(p.stderr) && os.Getenv("TERM") != "dumb"}
	if size := windowSize(p.stderr); size != nil {
		display.width = int(size.GetColumns())
	}
	if quiet || !display.live && f != formatTable && f != formatWide {
		display.hidden = true
	}
	return display
}

func (p *podctl) moveListCommand() *command {
	return &command{
		name: "ls", aliases: []string{"list"}, args: "[POD]", max: 1, completes: []completer{completePods, completeNothing},
		usage:       "list moves",
		description: "Lists moves, of all pods or one, the newest first.",
		examples:    []string{"podctl move ls", "podctl move ls alice -o wide"},
		flags:       []cli.Flag{outputFlag()},
		action: func(c *cli.Context) error {
			format, err := p.outputFormat(c)
			if err != nil {
				return err
			}
			client, err := p.client()
			if err != nil {
				return err
			}
			response, err := client.moves.ListMoves(c.Context, connect.NewRequest(&poddv1.ListMovesRequest{Pod: c.Args().First()}))
			if err != nil {
				return fmt.Errorf("listing moves: %w", err)
			}
			var moves []moveView
			for _, message := range response.Msg.GetMoves() {
				moves = append(moves, viewMove(message))
			}
			slices.SortStableFunc(moves, func(a, b moveView) int { return b.StartedAt.Compare(a.StartedAt) })
			return moveListing.print(p.stdout, format, moves)
		},
	}
}

func (p *podctl) moveShowCommand() *command {
	return &command{
		name: "show", args: "ID", min: 1, max: 1, completes: []completer{completeMoves, completeNothing},
		usage: "show a move and its receipt", notFound: "podctl move ls lists the moves",
		description: "Shows the receipt of a move that is done, how far one has got that is under way,\nor why one failed.",
		examples:    []string{"podctl move show 4f1c09", "podctl move show 4f1c09 -o yaml"},
		flags:       []cli.Flag{outputFlag()},
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
				return fmt.Errorf("showing move %s: %w", id, err)
			}
			return p.printMove(format, viewMove(response.Msg.GetMove()))
		},
	}
}
