package cli

import (
	"context"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
)

func (p *podctl) killCommand() *command {
	return &command{
		name: "kill", category: "Pods", args: "POD...", min: 1, max: unlimited,
		completes:   []completer{completePods},
		usage:       "send a signal to pods' main commands",
		description: "Sends SIGKILL, or the signal given by name or number, to the main command.",
		examples: []string{
			"podctl kill alice",
			"podctl kill -s HUP alice      # reread the configuration, say",
		},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "signal", Aliases: []string{"s"}, Value: "KILL", Usage: "send `SIGNAL`, a name or number"},
		},
		action: p.kill,
	}
}

func (p *podctl) kill(c *cli.Context) error {
	signal, err := parseSignal(c.String("signal"))
	if err != nil {
		return &usageError{p.current, err.Error()}
	}
	return p.forEach(c, "signalling", func(ctx context.Context, client *client, name string) error {
		_, err := client.pods.KillPod(ctx, connect.NewRequest(&poddv1.KillPodRequest{Pod: name, Signal: int32(signal)}))
		return err
	})
}
