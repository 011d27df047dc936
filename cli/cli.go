package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/urfave/cli/v2"
)

// podctl is one invocation.
type podctl struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	signals        *signals
	// connection is what the global flags say about whom to ask.
	connection connection
	// connected is the client once a command has asked for it.
	connected *client
	// root is the tree of commands, current the one that runs.
	root    *command
	current *command
	hinted  map[string]bool
}

// Run runs the podctl command that args name (without the program's own name)
// and returns its exit code. It reads and writes nothing but the given streams
// and what the command is about.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	p := &podctl{stdin: stdin, stdout: stdout, stderr: stderr, hinted: map[string]bool{}}
	p.root = p.commands()

	ctx, p.signals = watchSignals(ctx)
	defer p.signals.stop()

	err := p.execute(ctx, args)
	if p.connected != nil {
		p.connected.renew(ctx)
		p.connected.close()
	}
	var ended signalError
	if errors.As(context.Cause(ctx), &ended) && err != nil {
		// Whatever failed, failed because the user ended it.
		return 128 + int(ended.number)
	}
	return p.exitCode(err)
}

// execute finds the command and runs it, or prints its help.
func (p *podctl) execute(ctx context.Context, args []string) error {
	if len(args) > 0 && args[0] == completeWord {
		return p.printCandidates(ctx, args[1:])
	}
	help := len(args) > 0 && args[0] == "help"
	if help {
		args = args[1:]
	}
	a := takeApart(p.root, args)
	p.current = a.command
	switch {
	case help && len(a.args) > 0:
		return &usageError{a.command, fmt.Sprintf("unknown command %q", a.args[0])}
	case help || a.help:
		return p.printHelp(p.stdout, a.command)
	}
	return p.app().RunContext(ctx, append([]string{p.root.name}, a.words()...))
}

// commands is the whole tree.
func (p *podctl) commands() *command {
	root := &command{
		name:  "podctl",
		usage: "run sessions in pods and move them between hosts while they run",
		description: `podctl asks the podd on this machine, or the one that the context names, and
reaches every pod and host of the cluster through it.

Exit codes: 125 podctl or podd failed or the usage is wrong, 126 the command
in the pod can't be executed, 127 it isn't found, otherwise the command's own.

Environment: PODCTL_CONTEXT names the context, PODCTL_HOST gives an address
(unix:///run/podd/podd.sock, or https://HOST:7443 to be shown the context's
certificate). Flags win over them, and they win over the context that "podctl
context use" chose.`,
		examples: []string{
			"podctl run -d --name alice -- python3 -m http.server",
			"podctl ps",
			"podctl move alice b",
		},
		flags: append(p.connection.flags(),
			&cli.BoolFlag{Name: "version", Usage: "print podctl's version and exit"}),
		max: unlimited,
		subcommands: []*command{
			p.runCommand(), p.psCommand(), p.inspectCommand(), p.logsCommand(),
			p.execCommand(), p.attachCommand(), p.stopCommand(), p.killCommand(),
			p.rmCommand(), p.waitCommand(),
			p.moveCommand(), p.checkpointCommand(), p.restoreCommand(),
			p.hostCommand(), p.imageCommand(), p.clusterCommand(), p.doctorCommand(),
			p.labCommand(), p.demoCommand(),
			p.contextCommand(), p.versionCommand(), p.completionCommand(),
		},
		action: func(c *cli.Context) error {
			if c.Bool("version") {
				return p.printVersion()
			}
			return p.group(c)
		},
	}
	root.adopt()
	return root
}

func (p *podctl) app() *cli.App {
	root := p.root.build(p)
	return &cli.App{
		Name: root.Name, Flags: root.Flags, Commands: root.Subcommands,
		Action: root.Action, OnUsageError: root.OnUsageError,
		Reader: p.stdin, Writer: p.stdout, ErrWriter: p.stderr,
		HideHelp: true, HideVersion: true,
		UseShortOptionHandling: true, DisableSliceFlagSeparator: true,
		// Errors are reported once, by Run.
		ExitErrHandler: func(*cli.Context, error) {},
	}
}

// client connects to the daemon that the flags, environment and configuration
// choose. It is made once.
func (p *podctl) client() (*client, error) {
	if p.connected == nil {
		target, err := p.connection.resolve(os.Getenv)
		if err != nil {
			return nil, err
		}
		p.connected = newClient(target)
	}
	return p.connected, nil
}

// forEach does one thing to each of several objects, reports every failure and
// goes on. What succeeded is printed by name.
func (p *podctl) forEach(c *cli.Context, what string, do func(ctx context.Context, client *client, name string) error) error {
	client, err := p.client()
	if err != nil {
		return err
	}
	failed := false
	for _, name := range c.Args().Slice() {
		if err := do(c.Context, client, name); err != nil {
			p.printError(fmt.Errorf("%s %s: %w", what, name, err))
			failed = true
			if c.Context.Err() != nil {
				break
			}
			continue
		}
		fmt.Fprintln(p.stdout, name)
	}
	if failed {
		return exitStatus(exitError)
	}
	return nil
}
