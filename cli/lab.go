package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/urfave/cli/v2"

	"podd/lab"
)

// labContext is the name of the context that a lab selects.
const labContext = "lab"

var nodeListing = listing[lab.NodeStatus]{
	name: func(n lab.NodeStatus) string { return n.Node },
	columns: []column[lab.NodeStatus]{
		{title: "NODE", text: func(n lab.NodeStatus) string { return n.Node }},
		{title: "ADDRESS", text: func(n lab.NodeStatus) string {
			if !n.Address.IsValid() {
				return ""
			}
			return n.Address.String()
		}},
		{title: "RUNS", text: func(n lab.NodeStatus) string {
			if n.Daemon != "" && n.PID == 0 {
				return n.Daemon + " (down)"
			}
			return n.Daemon
		}},
		{title: "PID", text: func(n lab.NodeStatus) string {
			if n.PID == 0 {
				return ""
			}
			return fmt.Sprint(n.PID)
		}},
		{title: "LOG", text: func(n lab.NodeStatus) string { return n.Log }},
		{title: "SOCKET", text: func(n lab.NodeStatus) string { return n.Socket }, wide: true},
		{title: "NAMESPACE", text: func(n lab.NodeStatus) string { return n.Namespace }, wide: true},
	},
}

func (p *podctl) labCommand() *command {
	const hint = "podctl lab up makes a lab"
	return &command{
		name: "lab", category: "Trying it out", usage: "several hosts on this one machine",
		description: `A lab is a small internet of network namespaces: hosts a, b, c and so on, each in
its own subnet, a router between them, a proxy and a client. The daemons in it
are the real ones. It needs root.`,
		examples: []string{
			"podctl lab up",
			"podctl run -d --name web -- python3 -m http.server 80",
			"podctl lab exec client -- curl -s http://198.18.0.1/",
			"podctl move web b",
			"podctl lab down",
		},
		subcommands: []*command{
			{
				name: "up", usage: "make a lab and start the daemons in it",
				description: `Makes the lab, waits until its daemons answer, and selects the context "lab":
from then on podctl talks to the lab's host a.`,
				examples: []string{"podctl lab up", "podctl lab up --hosts 4 --link-rate 100mbit"},
				flags: []cli.Flag{
					&cli.IntFlag{Name: "hosts", Value: lab.DefaultHosts, Usage: fmt.Sprintf("make `NUMBER` hosts, %d to %d", lab.MinHosts, lab.MaxHosts)},
					&cli.StringFlag{Name: "link-rate", Usage: "limit every link to `RATE`, such as 1gbit", DefaultText: "no limit"},
					&cli.StringFlag{Name: "dir", Value: lab.DefaultDir, Usage: "keep the daemons' files and logs in `DIR`"},
					&cli.StringFlag{Name: "bin-dir", Usage: "take podd, podproxy and podinit from `DIR`", DefaultText: "where podctl is"},
					&cli.StringFlag{Name: "log-level", Value: "info", Usage: "what the daemons log: debug, info, warn or error"},
					outputFlag(),
				},
				action: p.labUp,
			},
			{
				name: "down", usage: "take the lab down and leave nothing behind",
				description: `Ends everything in the lab and removes its namespaces, mounts, cgroups and files,
also after a crash. The context that was in use before is selected again.`,
				examples: []string{"podctl lab down"},
				action:   p.labDown,
			},
			{
				name: "status", aliases: []string{"ls"}, usage: "list the lab's nodes", notFound: hint,
				description: "Lists the lab's nodes and the daemons on them.",
				examples:    []string{"podctl lab status", "podctl lab status -o wide"},
				flags:       []cli.Flag{outputFlag()},
				action:      p.labStatus,
			},
			{
				name: "exec", args: "NODE [--] COMMAND [ARG...]", min: 2, max: unlimited, inner: 2, notFound: hint,
				completes: []completer{completeNodes, completeCommands, completeFiles},
				usage:     "run a command in the network of a node",
				description: `Runs COMMAND in a node's network namespace; all else is this machine's. The exit
code is the command's own.`,
				examples: []string{
					"podctl lab exec client -- ping -c 1 198.18.0.1",
					"podctl lab exec a -- ip -d link",
				},
				action: func(c *cli.Context) error {
					l, err := lab.Load()
					if err != nil {
						return err
					}
					command := innerCommand(c.Args().Tail())
					if len(command) == 0 {
						return &usageError{p.current, "no command given"}
					}
					return fmt.Errorf("executing %s in node %s: %w", command[0], c.Args().First(), l.Exec(c.Args().First(), command))
				},
			},
		},
	}
}

func (p *podctl) labUp(c *cli.Context) error {
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	l, err := lab.Up(c.Context, lab.Options{
		Hosts: c.Int("hosts"), LinkRate: c.String("link-rate"), Dir: c.String("dir"), BinDir: c.String("bin-dir"), LogLevel: c.String("log-level"),
	})
	switch {
	case errors.Is(err, lab.ErrUp):
		return &hintedError{err, "podctl lab status shows it, podctl lab down takes it down"}
	case errors.Is(err, fs.ErrPermission):
		return &hintedError{err, "a lab needs root"}
	case err != nil:
		return err
	}
	if err := selectLab("unix://" + l.Socket(l.HostNames()[0])); err != nil {
		return fmt.Errorf("the lab is up, but selecting its context failed: %w", err)
	}
	if err := p.printNodes(format, l); err != nil {
		return err
	}
	for _, name := range []string{"PODCTL_HOST", "PODCTL_CONTEXT"} {
		if os.Getenv(name) != "" {
			fmt.Fprintf(p.stderr, "podctl: warning: %s is set and wins over the context %q\n", name, labContext)
		}
	}
	return nil
}

// selectLab makes the context of a lab and chooses it.
func selectLab(host string) error {
	return editConfig(func(config *config) error {
		previous := config.Current
		if previous == labContext {
			// Left by a lab that ended without podctl lab down.
			previous = config.Contexts[labContext].Previous
		}
		config.set(labContext, contextConfig{Host: host, Previous: previous})
		config.Current = labContext
		return nil
	})
}

func (p *podctl) labDown(c *cli.Context) error {
	// Interrupting it half-way helps nobody: it can be called again.
	if err := lab.Down(context.WithoutCancel(c.Context)); err != nil {
		return fmt.Errorf("taking the lab down: %w", err)
	}
	return editConfig(func(config *config) error {
		config.remove(labContext)
		return nil
	})
}

func (p *podctl) labStatus(c *cli.Context) error {
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	l, err := lab.Load()
	if err != nil {
		return err
	}
	return p.printNodes(format, l)
}

func (p *podctl) printNodes(f format, l *lab.Lab) error {
	nodes, err := l.Status()
	if err != nil {
		return fmt.Errorf("looking at the lab: %w", err)
	}
	return nodeListing.print(p.stdout, f, nodes)
}

func completeNodes(context.Context, *podctl) []candidate {
	l, err := lab.Load()
	if err != nil {
		return nil
	}
	var out []candidate
	for _, node := range l.Nodes() {
		out = append(out, candidate{value: node})
	}
	return out
}
