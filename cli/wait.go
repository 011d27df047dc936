package cli

import (
	"context"
	"fmt"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
)

func (p *podctl) waitCommand() *command {
	return &command{
		name: "wait", category: "Pods", args: "POD...", min: 1, max: unlimited,
		completes: []completer{completePods},
		usage:     "wait until pods' main commands have ended",
		description: `Prints the exit code of each pod's main command when it has ended and exits with
the last that was not 0. It goes on waiting while a pod moves.`,
		examples: []string{
			"podctl wait alice",
			"podctl wait build && podctl logs build",
		},
		action: p.wait,
	}
}

func (p *podctl) wait(c *cli.Context) error {
	client, err := p.client()
	if err != nil {
		return err
	}
	status := 0
	for _, name := range c.Args().Slice() {
		code, err := client.waitPod(c.Context, name)
		if err != nil {
			p.printError(fmt.Errorf("waiting for %s: %w", name, err))
			status = exitError
			continue
		}
		fmt.Fprintln(p.stdout, code)
		if code != 0 && status != exitError {
			status = code
		}
	}
	if status != 0 {
		return exitStatus(status)
	}
	return nil
}

// waitPod waits for a pod's main command, over moves and restarts of podd, and
// returns its exit code.
func (c *client) waitPod(ctx context.Context, name string) (int, error) {
	attempts := newAttempts()
	for {
		attempts.begin()
		response, err := c.pods.WaitPod(ctx, connect.NewRequest(&poddv1.WaitPodRequest{Pod: name}))
		if err == nil {
			return int(response.Msg.GetExitCode()), nil
		}
		if !c.passing(ctx, name, err) {
			return 0, err
		}
		if err := attempts.wait(ctx, err); err != nil {
			return 0, err
		}
	}
}
