package cli

import (
	"bufio"
	"context"
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

var hostListing = listing[hostView]{
	name: func(v hostView) string { return v.Name },
	columns: []column[hostView]{
		{title: "NAME", text: func(v hostView) string { return v.Name }},
		{title: "STATE", text: hostView.state},
		{title: "ADDRESS", text: func(v hostView) string { return v.PhysicalAddress }},
		{title: "PODS", text: func(v hostView) string { return fmt.Sprint(v.Pods) }},
		{title: "CPUS", text: func(v hostView) string { return fmt.Sprint(v.CPUs) }},
		{title: "MEMORY", text: func(v hostView) string { return formatBytes(v.MemoryBytes) }},
		{title: "KERNEL", text: func(v hostView) string { return v.Kernel }},
		{title: "CRIU", text: func(v hostView) string { return v.CRIU }},
		{title: "API", text: func(v hostView) string { return v.APIAddress }, wide: true},
		{title: "CPU", text: func(v hostView) string { return v.CPU }, wide: true},
		{title: "VERSION", text: func(v hostView) string { return v.Version }, wide: true},
		{title: "STARTED", text: func(v hostView) string { return age(v.StartedAt) }, wide: true},
	},
}

func (p *podctl) hostCommand() *command {
	return &command{
		name: "host", category: "Hosts and images", usage: "the hosts that pods run on",
		description: "A host is a machine that runs podd and has joined the cluster.",
		examples:    []string{"podctl host ls", "podctl host rm c"},
		subcommands: []*command{
			{
				name: "ls", aliases: []string{"list"}, usage: "list hosts",
				description: "Lists the hosts of the cluster, those that are down too.",
				examples: []string{
					"podctl host ls",
					"podctl host ls -o wide",
				},
				flags:  []cli.Flag{outputFlag()},
				action: p.hostList,
			},
			{
				name: "rm", args: "HOST...", min: 1, max: unlimited, completes: []completer{completeHosts},
				usage: "forget hosts that will not come back", notFound: "podctl host ls lists the hosts",
				description: `Forgets hosts and revokes their certificates: from now on every daemon and the
directory refuse them. A host must be down, and no pod may be on it: move its
pods away and stop its podd first. To come back it needs a new token.`,
				examples: []string{"podctl host rm c", "podctl host rm --yes b c"},
				flags: []cli.Flag{
					&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "do not ask whether that is meant"},
				},
				action: p.hostRemove,
			},
		},
	}
}

func (p *podctl) hostRemove(c *cli.Context) error {
	if !c.Bool("yes") {
		question := fmt.Sprintf("Forget %s and revoke its certificate?", strings.Join(c.Args().Slice(), ", "))
		sure, err := p.confirm(c.Context, question)
		if err != nil {
			return err
		}
		if !sure {
			fmt.Fprintln(p.stderr, "nothing was done")
			return exitStatus(exitError)
		}
	}
	return p.forEach(c, "removing host", func(ctx context.Context, client *client, name string) error {
		_, err := client.hosts.RemoveHost(ctx, connect.NewRequest(&poddv1.RemoveHostRequest{Name: name}))
		return err
	})
}

// confirm asks a question on the terminal. Without one, nobody can answer.
func (p *podctl) confirm(ctx context.Context, question string) (bool, error) {
	if !isTerminal(p.stdin) {
		return false, &hintedError{fmt.Errorf("%w: %s standard input is no terminal to ask on", pod.ErrInvalid, question), "--yes answers beforehand"}
	}
	fmt.Fprint(p.stderr, question+" [y/N] ")
	// A signal must not wait for the answer.
	answers := make(chan string, 1)
	go func() {
		answer, err := bufio.NewReader(p.stdin).ReadString('\n')
		if err != nil {
			answer = ""
		}
		answers <- strings.ToLower(strings.TrimSpace(answer))
	}()
	select {
	case answer := <-answers:
		return answer == "y" || answer == "yes", nil
	case <-ctx.Done():
		return false, context.Cause(ctx)
	}
}

func (p *podctl) hostList(c *cli.Context) error {
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	response, err := client.hosts.ListHosts(c.Context, connect.NewRequest(&poddv1.ListHostsRequest{}))
	if err != nil {
		return fmt.Errorf("listing hosts: %w", err)
	}
	var hosts []hostView
	for _, message := range response.Msg.GetHosts() {
		hosts = append(hosts, viewHost(message))
	}
	slices.SortFunc(hosts, func(a, b hostView) int { return strings.Compare(a.Name, b.Name) })
	return hostListing.print(p.stdout, format, hosts)
}
