package cli

import (
	"context"
	"time"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	poddv1 "podd/api/podd/v1"
)

// defaultStopSeconds is how long a main command has to end after the stop signal.
const defaultStopSeconds = 10

func (p *podctl) stopCommand() *command {
	return &command{
		name: "stop", category: "Pods", args: "POD...", min: 1, max: unlimited,
		completes: []completer{completePods},
		usage:     "end pods' main commands",
		description: `Sends the main command SIGTERM and, when it has not ended in time, kills
everything in the pod. The pod's files and name are kept until podctl rm.`,
		examples: []string{
			"podctl stop alice",
			"podctl stop -t 60 alice bob     # give them a minute",
		},
		flags: []cli.Flag{
			&cli.IntFlag{Name: "time", Aliases: []string{"t"}, Value: defaultStopSeconds, Usage: "wait `SECONDS` before killing"},
		},
		action: p.stop,
	}
}

func (p *podctl) stop(c *cli.Context) error {
	seconds := c.Int("time")
	if seconds < 0 {
		return &usageError{p.current, "--time can't be negative"}
	}
	timeout := durationpb.New(time.Duration(seconds) * time.Second)
	return p.forEach(c, "stopping", func(ctx context.Context, client *client, name string) error {
		_, err := client.pods.StopPod(ctx, connect.NewRequest(&poddv1.StopPodRequest{Pod: name, Timeout: timeout}))
		return err
	})
}
