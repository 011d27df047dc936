package cli

import (
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
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
		examples:    []string{"podctl host ls"},
		subcommands: []*command{{
			name: "ls", aliases: []string{"list"}, usage: "list hosts",
			description: "Lists the hosts of the cluster, those that are down too.",
			examples: []string{
				"podctl host ls",
				"podctl host ls -o wide",
			},
			flags:  []cli.Flag{outputFlag()},
			action: p.hostList,
		}},
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
