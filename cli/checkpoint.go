package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"connectrpc.com/connect"
	"github.com/google/renameio/v2"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// stageConfirm is the stage of a checkpoint in which podd waits to hear that the
// file is stored.
const stageConfirm pod.Stage = "confirm"

func (p *podctl) checkpointCommand() *command {
	return &command{
		name: "checkpoint", category: "Moves", args: "POD", min: 1, max: 1,
		completes: []completer{completePods, completeNothing},
		usage:     "write a running pod into a file",
		description: `Writes a pod that runs, its memory and its private files, into a file, and stops
it. podctl restore lets it go on from there, on any host: with its addresses, and
with its connections if it is done before those at the other ends give up. The
pod is stopped only when the file is stored: if anything fails, it goes on.

With --leave-running the pod goes on after it was frozen for a moment. Such a
file can be restored when the pod is gone, or at any time as a copy.

The file is signed by the host and encrypted to the cluster, whose hosts alone
can read it. --recipient names further age keys that can; with
--only-recipients the cluster can't. Only its owner may open the file.`,
		examples: []string{
			"podctl checkpoint alice -o alice.podd",
			"podctl checkpoint alice --leave-running -o alice.podd",
			"podctl checkpoint alice -o - | ssh store 'cat > alice.podd'",
			"podctl checkpoint inspect alice.podd",
		},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "file", Aliases: []string{"o"}, Usage: "write to `FILE`, or to standard output (-)"},
			&cli.BoolFlag{Name: "leave-running", Usage: "let the pod go on"},
			&cli.StringSliceFlag{Name: "recipient", Usage: "encrypt to this age `KEY` too (age1...); can be given several times"},
			&cli.BoolFlag{Name: "only-recipients", Usage: "encrypt to the recipients and not to the cluster"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "do not show the stages while they last"},
		},
		subcommands: []*command{p.checkpointInspectCommand()},
		action:      p.checkpoint,
	}
}

func (p *podctl) checkpoint(c *cli.Context) error {
	name, path := c.Args().First(), c.String("file")
	if path == "" {
		return &usageError{p.current, "name the file: -o FILE"}
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	out, err := p.createCheckpoint(path)
	if err != nil {
		return fmt.Errorf("writing %s into a file: %w", name, err)
	}
	defer out.cleanup()
	display := p.newProgress(formatTable, c.Bool("quiet"))
	display.heading = fmt.Sprintf("writing %s into %s", name, out.name)
	run := &checkpointRun{client: client, out: out, display: display}
	err = run.run(c.Context, &poddv1.CheckpointPodRequest{
		Pod: name, LeaveRunning: c.Bool("leave-running"),
		Recipients: c.StringSlice("recipient"), OnlyRecipients: c.Bool("only-recipients"),
	})
	display.finish(err != nil)
	if err != nil {
		err = fmt.Errorf("writing %s into a file: %w", name, err)
	}
	switch {
	case err != nil && run.stored:
		p.printError(err)
		fmt.Fprintf(p.stderr, "podctl: %s is whole; podctl ps -a shows whether %s goes on\n", out.name, name)
		return exitStatus(exitError)
	case err != nil:
		return err
	}
	what := "stopped"
	if c.Bool("leave-running") {
		what = "goes on running"
	}
	to := p.stdout
	if path == "-" {
		to = p.stderr
	}
	_, err = fmt.Fprintf(to, "wrote %s: %s; %s %s\n", out.name, formatBytes(out.size), name, what)
	return err
}

// checkpointRun is one file on its way from podd.
type checkpointRun struct {
	client  *client
	out     *checkpointOutput
	display *progress
	// stored says that the file is whole and safe.
	stored bool
}

// run writes the file, and tells podd when it is safe.
func (r *checkpointRun) run(ctx context.Context, request *poddv1.CheckpointPodRequest) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.client.pods.CheckpointPod(ctx, connect.NewRequest(request))
	if err != nil {
		return err
	}
	defer stream.Close()
	for stream.Receive() {
		message := stream.Msg()
		stage := pod.Stage(message.GetStage())
		if data := message.GetData(); len(data) > 0 {
			if _, err := r.out.Write(data); err != nil {
				return err
			}
			r.display.update(stage, r.out.size, 0)
		} else if stage != "" {
			r.display.update(stage, message.GetBytes(), message.GetTotalBytes())
		}
		if stage != stageConfirm || r.stored {
			continue
		}
		if err := r.confirm(ctx, request.GetPod(), message.GetId()); err != nil {
			return err
		}
	}
	if err := stream.Err(); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !request.GetLeaveRunning() {
		if !r.stored {
			return errors.New("podd ended the stream without a result")
		}
		return nil
	}
	return r.store()
}

func (r *checkpointRun) store() error {
	err := r.out.store()
	r.stored = err == nil
	return err
}

// confirm makes the file safe and says so, upon which podd ends the pod.
func (r *checkpointRun) confirm(ctx context.Context, name, id string) error {
	if err := r.store(); err != nil {
		return err
	}
	_, err := r.client.pods.ConfirmCheckpoint(ctx, connect.NewRequest(&poddv1.ConfirmCheckpointRequest{Pod: name, Id: id}))
	return err
}

// checkpointOutput is where a file goes: to a path, at which it appears when it
// is whole, or to standard output.
type checkpointOutput struct {
	name    string // for people
	w       io.Writer
	pending *renameio.PendingFile
	path    string
	size    int64
}

func (p *podctl) createCheckpoint(path string) (*checkpointOutput, error) {
	if path == "-" {
		if isTerminal(p.stdout) {
			return nil, fmt.Errorf("%w: standard output is a terminal: name a file, or pipe it somewhere", pod.ErrInvalid)
		}
		return &checkpointOutput{name: "standard output", w: p.stdout}, nil
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %s is not a regular file", pod.ErrInvalid, path)
	}
	pending, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)), renameio.WithStaticPermissions(0o600))
	if err != nil {
		return nil, err
	}
	return &checkpointOutput{name: path, w: pending, pending: pending, path: path}, nil
}

func (o *checkpointOutput) Write(data []byte) (int, error) {
	n, err := o.w.Write(data)
	o.size += int64(n)
	return n, err
}

// store makes the file appear, safe from a power failure too.
func (o *checkpointOutput) store() error {
	if o.pending == nil {
		return nil // what reads standard output has it
	}
	if err := o.pending.CloseAtomicallyReplace(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(o.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// cleanup removes a file that is not whole.
func (o *checkpointOutput) cleanup() {
	if o.pending != nil {
		_ = o.pending.Cleanup() // after store there is nothing to remove
	}
}
