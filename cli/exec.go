package cli

import (
	"context"

	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

func (p *podctl) execCommand() *command {
	return &command{
		name: "exec", category: "Pods", args: "POD [--] COMMAND [ARG...]", min: 2, max: unlimited, inner: 2,
		completes: []completer{completePods, completeCommands, completeFiles},
		usage:     "run another command in a pod",
		description: `Runs COMMAND beside the main command of a pod that runs. It moves with the pod,
and podctl stays connected to it. Options stand before POD.

Exit codes: the command's own; 125 podctl or podd failed, 126 the command
can't be executed, 127 it isn't found.

On a terminal the keys ctrl-p ctrl-q leave the command running and podctl ends.`,
		examples: []string{
			"podctl exec -it alice -- bash",
			"podctl exec --user postgres db -- psql -c 'select 1'",
			"tar c data | podctl exec -i alice -- tar x -C /srv",
		},
		flags:  append(processFlags(), detachKeysFlag()),
		action: p.exec,
	}
}

func (p *podctl) exec(c *cli.Context) error {
	keys, err := parseDetachKeys(c.String("detach-keys"))
	if err != nil {
		return err
	}
	env, err := environment(c.StringSlice("env-file"), c.StringSlice("env"))
	if err != nil {
		return err
	}
	name, command := c.Args().First(), innerCommand(c.Args().Tail())
	if len(command) == 0 {
		return &usageError{p.current, "no command given"}
	}
	// The checks on a pod's main command hold for any command in it.
	check := pod.Spec{Name: name, Command: command, Env: env, WorkDir: c.String("workdir")}
	if err := check.Validate(); err != nil {
		return err
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	s := p.execSession(client, &poddv1.ExecStart{
		Pod: name, Command: command, Env: env, User: c.String("user"), WorkDir: c.String("workdir"),
		Tty: c.Bool("tty"), Stdin: c.Bool("interactive"),
	})
	s.tty, s.input, s.detachKeys = c.Bool("tty"), c.Bool("interactive"), keys
	p.warnNoTerminal(s.tty && s.input)
	return p.sessionResult(s, "executing "+commandLine(command[:1])+" in "+name)(s.run(c.Context))
}

// innerCommand leaves out the "--" that may stand before a command.
func innerCommand(words []string) []string {
	if len(words) > 0 && words[0] == "--" {
		return words[1:]
	}
	return words
}

// execSession is a session with a new command in a pod. Once podd has named it
// the same one is resumed.
func (p *podctl) execSession(client *client, start *poddv1.ExecStart) *session {
	s := &session{podctl: p, client: client, pod: start.GetPod()}
	s.note = func(m message) {
		if m.session != "" {
			start.Session = m.session
		}
	}
	s.open = func(ctx context.Context, window *poddv1.WindowSize) (duplex, error) {
		start.Window = window
		stream := client.pods.Exec(ctx)
		err := stream.Send(&poddv1.ExecRequest{Request: &poddv1.ExecRequest_Start{Start: start}})
		return opened(execStream{stream}, err)
	}
	return s
}
