package cli

import (
	"context"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
)

func (p *podctl) logsCommand() *command {
	return &command{
		name: "logs", category: "Pods", args: "POD", min: 1, max: 1,
		completes: []completer{completePods, completeNothing},
		usage:     "print what a pod's main command has written",
		description: `Prints the main command's standard output on standard output and its standard
error on standard error. With -f it goes on until the command ends, also while
the pod moves.`,
		examples: []string{
			"podctl logs alice",
			"podctl logs -f --tail 10 alice",
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on printing until the command ends"},
			&cli.Int64Flag{Name: "tail", Aliases: []string{"n"}, Value: -1, DefaultText: "all", Usage: "begin with the last `LINES`"},
		},
		action: func(c *cli.Context) error {
			client, err := p.client()
			if err != nil {
				return err
			}
			name := c.Args().First()
			request := &poddv1.LogsRequest{Pod: name, Follow: c.Bool("follow"), Tail: c.Int64("tail")}
			if err := client.logs(c.Context, request, p.stdout, p.stderr); err != nil {
				return fmt.Errorf("reading the logs of %s: %w", name, err)
			}
			return nil
		},
	}
}

// logs copies a pod's logs, over moves and restarts of podd: every byte once.
func (c *client) logs(ctx context.Context, request *poddv1.LogsRequest, stdout, stderr io.Writer) error {
	attempts := newAttempts()
	for {
		attempts.begin()
		moved, failure, err := c.readLogs(ctx, request, stdout, stderr, attempts)
		switch {
		case err != nil:
			return err
		case failure == nil && !moved:
			return nil
		case moved:
			failure = errMoving
		case request.GetFrom() == nil || !c.passing(ctx, request.GetPod(), failure):
			return failure
		}
		if err := attempts.wait(ctx, failure); err != nil {
			return err
		}
	}
}

// readLogs reads one stream to its end and keeps the position in the request.
// failure is the stream's, err a local one.
func (c *client) readLogs(ctx context.Context, request *poddv1.LogsRequest, stdout, stderr io.Writer, attempts *attempts) (moved bool, failure, err error) {
	stream, failure := c.pods.Logs(ctx, connect.NewRequest(request))
	if failure != nil {
		return false, failure, nil
	}
	defer stream.Close()
	for stream.Receive() {
		message := stream.Msg()
		if len(message.GetStdout())+len(message.GetStderr()) > 0 {
			attempts.succeeded()
		}
		if _, err := stdout.Write(message.GetStdout()); err != nil {
			return false, nil, fmt.Errorf("writing to standard output: %w", err)
		}
		if _, err := stderr.Write(message.GetStderr()); err != nil {
			return false, nil, fmt.Errorf("writing to standard error: %w", err)
		}
		if message.GetPosition() != nil {
			request.From = message.GetPosition()
		}
		if message.GetMoved() {
			return true, nil, nil
		}
	}
	return false, stream.Err(), nil
}
