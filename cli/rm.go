package cli

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

func (p *podctl) rmCommand() *command {
	return &command{
		name: "rm", category: "Pods", args: "POD...", min: 1, max: unlimited,
		completes: []completer{completePods},
		usage:     "remove pods and their files",
		description: `Removes pods that have stopped: their private files, addresses and names. With
-f a pod that runs is killed first.`,
		examples: []string{
			"podctl rm alice",
			"podctl rm -f $(podctl ps -q)      # all of them, at once",
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "kill pods that run"},
		},
		action: p.rm,
	}
}

func (p *podctl) rm(c *cli.Context) error {
	return p.forEach(c, "removing", func(ctx context.Context, client *client, name string) error {
		_, err := client.pods.RemovePod(ctx, connect.NewRequest(&poddv1.RemovePodRequest{Pod: name, Force: c.Bool("force")}))
		if errors.Is(err, pod.ErrPhase) && !c.Bool("force") {
			return &hintedError{err, "podctl stop ends a pod; podctl rm -f removes it even while it runs"}
		}
		return err
	})
}
