package cli

import (
	"context"
	"errors"
	"fmt"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

func (p *podctl) attachCommand() *command {
	return &command{
		name: "attach", category: "Pods", args: "POD", min: 1, max: 1,
		completes: []completer{completePods, completeNothing},
		usage:     "connect to a pod's main command",
		description: `Connects this terminal, or standard input, output and error, to the main
command: from now on, what it wrote before is in podctl logs. Stays connected
while the pod moves, and exits with the command's exit code.

On a terminal the keys ctrl-p ctrl-q leave the command running and podctl ends.`,
		examples: []string{
			"podctl attach alice",
			"podctl attach --no-stdin alice     # only look",
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "no-stdin", Usage: "do not connect standard input"},
			&cli.BoolFlag{Name: "sig-proxy", Value: true, Usage: "without a terminal, pass signals on to the command"},
			detachKeysFlag(),
		},
		action: p.attach,
	}
}

func (p *podctl) attach(c *cli.Context) error {
	keys, err := parseDetachKeys(c.String("detach-keys"))
	if err != nil {
		return err
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	name := c.Args().First()
	response, err := client.pods.GetPod(c.Context, connect.NewRequest(&poddv1.GetPodRequest{Pod: name}))
	if err != nil {
		return fmt.Errorf("attaching to %s: %w", name, err)
	}
	v := viewPod(response.Msg.GetPod())
	if !v.Phase.Live() {
		return &hintedError{
			fmt.Errorf("attaching to %s: %w: it is %s", name, pod.ErrPhase, v.phase()),
			fmt.Sprintf("podctl logs %s shows what it wrote", name),
		}
	}
	s := p.attachSession(client, name, nil)
	s.tty, s.input, s.detachKeys, s.proxySignals = v.Spec.TTY, v.Spec.Stdin && !c.Bool("no-stdin"), keys, c.Bool("sig-proxy")
	return p.sessionResult(s, "attaching to "+name)(s.run(c.Context))
}

// attachSession is a session with a pod's main command, whose output is read
// from a position on; nil means from now on.
func (p *podctl) attachSession(client *client, name string, from *poddv1.OutputPosition) *session {
	s := &session{podctl: p, client: client, pod: name}
	s.note = func(m message) {
		if m.position != nil {
			from = m.position
		}
	}
	s.open = func(ctx context.Context, window *poddv1.WindowSize) (duplex, error) {
		stream := client.pods.Attach(ctx)
		start := &poddv1.AttachStart{Pod: name, Window: window, From: from}
		err := stream.Send(&poddv1.AttachRequest{Request: &poddv1.AttachRequest_Start{Start: start}})
		return opened(attachStream{stream}, err)
	}
	return s
}

// opened is a stream whose start was sent with this result. When that failed
// the reason is what the stream has to say.
func opened(stream duplex, err error) (duplex, error) {
	if err == nil {
		return stream, nil
	}
	if _, reason := stream.receive(); reason != nil {
		err = reason
	}
	stream.close()
	return nil, err
}

// sessionResult turns what a session returned into what its command returns.
func (p *podctl) sessionResult(s *session, doing string) func(code int, err error) error {
	return func(code int, err error) error {
		switch {
		case errors.Is(err, errDetached):
			fmt.Fprintf(p.stderr, "podctl: detached from %s\n", s.pod)
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", doing, err)
		case code != 0:
			return exitStatus(code)
		}
		return nil
	}
}
