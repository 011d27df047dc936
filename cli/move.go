package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// exitNotMovable is move --dry-run's verdict on a pod that can't be moved.
const exitNotMovable = 1

func (p *podctl) moveCommand() *command {
	return &command{
		name: "move", aliases: []string{"mv", "migrate"}, category: "Moves", args: "POD HOST", max: 2,
		completes: []completer{completePods, completeHosts, completeNothing},
		notFound:  "podctl ps -a lists the pods, podctl host ls the hosts",
		usage:     "move a pod to another host while it runs",
		description: `Moves a pod that runs, its memory and its private files, to another host. Its
processes go on where they were, its addresses and names stay, and its TCP
connections live on. When the move fails before the other host has taken over,
the pod goes on running where it was.

Shows each stage while it lasts, and in the end a receipt: freeze is how long no
process of the pod ran, excision how long it took from the freeze until the image
was complete on the target, and insertion from there until the pod ran. A host
carries out a few moves at a time; one too many waits, queued, for its turn.

Ctrl-C, or SIGTERM, has the move undone and waits for that; a second one leaves
it to podd. The exit code is then 130 (143), or 0 if it was too late and the pod
has moved. With --timeout and --max-downtime a move is undone that takes longer,
and the pod goes on where it was.

--strategy says how the memory is carried:
  auto               podd chooses: from the size of the memory, how fast the pod
                     writes to it, the link and --max-downtime. podctl move show
                     says what it has chosen, and why
  stop-copy          all of it while the pod is frozen: for little memory, and
                     the one that needs no more of the kernel than CRIU does
  pre-copy           while the pod runs, and the difference while it is frozen:
                     once it runs on the target nothing is left on the source
  post-copy          as pre-copy, and the rest when the pod runs on the target:
                     the shortest freeze for much memory, or a pod that writes
                     a lot; until all has come the pod needs both hosts
  checkpoint-server  through podproxy, for hosts that can't reach each other

--dry-run only checks whether the pod can be moved, and says what is in the way;
the exit code is 0 if it can and 1 if it can't.`,
		examples: []string{
			"podctl move alice b",
			"podctl move --dry-run alice b",
			"podctl move --max-downtime 200ms --timeout 5m alice b",
			"podctl move --strategy post-copy alice b",
			"podctl move -o json alice b | jq .receipt.freezeMs",
			"podctl move --detach alice b     # prints the move's ID",
			"podctl move wait 4f1c09",
			"podctl move cancel 4f1c09",
			"podctl move ls",
			"podctl move show 4f1c09",
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "dry-run", Usage: "only say whether the pod can be moved, and what is in the way"},
			&cli.DurationFlag{Name: "timeout", Usage: "undo the move if it takes longer than `TIME`, such as 90s or 5m, waiting in the queue included"},
			&cli.DurationFlag{Name: "max-downtime", Usage: "undo the move rather than freeze the pod for longer than `TIME`, such as 200ms"},
			&cli.StringFlag{Name: "strategy", Value: string(pod.StrategyAuto), Usage: "carry memory by `STRATEGY`: auto, stop-copy, pre-copy, post-copy or checkpoint-server"},
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "print the move's ID as soon as it has one, and leave it to podd"},
			&cli.StringFlag{Name: "cancel", Usage: "undo the move `ID`, as podctl move cancel does"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "do not show the stages while they last"},
			outputFlag(),
		},
		subcommands: []*command{p.moveListCommand(), p.moveShowCommand(), p.moveWaitCommand(), p.moveCancelCommand()},
		action:      p.startMove,
	}
}

// startMove has a pod moved, or does what a flag says instead: undo a move, or only check.
func (p *podctl) startMove(c *cli.Context) error {
	if err := checkMoveFlags(p.current, c); err != nil {
		return err
	}
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	if id := c.String("cancel"); c.IsSet("cancel") {
		return p.cancelMove(c.Context, client, format, id, "")
	}
	request := &poddv1.MovePodRequest{Pod: c.Args().Get(0), Target: c.Args().Get(1), Strategy: c.String("strategy")}
	if c.IsSet("timeout") {
		request.Timeout = durationpb.New(c.Duration("timeout"))
	}
	if c.IsSet("max-downtime") {
		request.MaxDowntime = durationpb.New(c.Duration("max-downtime"))
	}
	if c.Bool("dry-run") {
		return p.checkMove(c.Context, client, format, request)
	}
	if c.Bool("detach") {
		return p.detachMove(c.Context, client, format, request)
	}
	return p.move(c.Context, client, format, request, c.Bool("quiet"))
}

// checkMoveFlags refuses what makes no sense together.
func checkMoveFlags(command *command, c *cli.Context) error {
	for _, name := range []string{"timeout", "max-downtime"} {
		if c.IsSet(name) && c.Duration(name) <= 0 {
			return &usageError{command, fmt.Sprintf("--%s %s: want a time above 0", name, c.Duration(name))}
		}
	}
	if _, err := pod.ParseStrategy(c.String("strategy")); err != nil {
		return &usageError{command, "--strategy: " + strings.TrimPrefix(err.Error(), pod.ErrInvalid.Error()+": ")}
	}
	together := func(one string, others ...string) error {
		for _, other := range others {
			if c.IsSet(one) && c.IsSet(other) {
				return &usageError{command, fmt.Sprintf("--%s and --%s can't be used together", one, other)}
			}
		}
		return nil
	}
	err := together("cancel", "dry-run", "detach", "timeout", "max-downtime", "strategy")
	if err == nil {
		err = together("dry-run", "detach", "timeout")
	}
	if err != nil {
		return err
	}
	switch {
	case c.IsSet("cancel") && c.String("cancel") == "":
		return &usageError{command, "--cancel needs the ID of a move"}
	case c.IsSet("cancel") && c.Args().Present():
		return &usageError{command, fmt.Sprintf("--cancel takes no other arguments, got %q", c.Args().First())}
	case !c.IsSet("cancel") && c.NArg() < 2:
		return &usageError{command, "too few arguments: want " + command.args}
	}
	return nil
}

// move moves a pod, shows how it goes and prints the receipt.
func (p *podctl) move(ctx context.Context, client *client, f format, request *poddv1.MovePodRequest, quiet bool) error {
	display := p.newProgress(f, quiet)
	display.heading = fmt.Sprintf("moving %s to %s", request.Pod, request.Target)
	run := &moveRun{p: p, client: client, display: display, mayCancel: true}
	err := run.follow(ctx, func(ctx context.Context, emit func(moveEvent)) error { return client.carryOut(ctx, request, emit) })
	return p.reportMove(ctx, client, f, run, request.Pod, request.Target, err)
}

// reportMove prints how a move that was followed has ended. Its exit code says
// whether the pod has moved.
func (p *podctl) reportMove(ctx context.Context, client *client, f format, run *moveRun, name, target string, err error) error {
	if run.result == nil && err != nil {
		err = fmt.Errorf("moving %s to %s: %w", name, target, err)
		if errors.Is(err, pod.ErrBlocked) {
			p.printError(err)
			return p.printObstacles(ctx, client, name, target)
		}
		return err
	}
	v := viewMove(run.result)
	failed := v.State == pod.MoveAborted
	if f != formatTable && f != formatWide || !failed {
		if err := p.printMove(f, v); err != nil {
			return err
		}
	}
	if !failed {
		return nil
	}
	p.printError(moveFailure(v))
	p.printWhereabouts(ctx, client, name)
	if run.signal != 0 {
		return exitStatus(128 + int(run.signal))
	}
	return exitStatus(exitError)
}

// detachMove begins a move and prints its ID.
func (p *podctl) detachMove(ctx context.Context, client *client, f format, request *poddv1.MovePodRequest) error {
	run := &moveRun{p: p, client: client, display: &progress{w: p.stderr, now: time.Now, hidden: true}, mayCancel: true, detach: true}
	err := run.follow(ctx, func(ctx context.Context, emit func(moveEvent)) error { return client.carryOut(ctx, request, emit) })
	if run.id == "" {
		return p.reportMove(ctx, client, f, run, request.Pod, request.Target, err)
	}
	if f == formatJSON || f == formatYAML {
		response, err := client.moves.GetMove(ctx, connect.NewRequest(&poddv1.GetMoveRequest{Id: run.id}))
		if err != nil {
			return fmt.Errorf("showing move %s: %w", run.id, err)
		}
		return printDocument(p.stdout, f, viewMove(response.Msg.GetMove()))
	}
	_, err = fmt.Fprintln(p.stdout, run.id)
	return err
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
	check, err := client.checkMove(ctx, &poddv1.MovePodRequest{Pod: name, Target: target})
	if err == nil && len(check.Blockers) > 0 {
		if err := printBlockers(p.stderr, check.Blockers); err != nil {
			return err
		}
	}
	p.printWhereabouts(ctx, client, name)
	return exitStatus(exitError)
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
