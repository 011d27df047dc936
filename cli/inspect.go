package cli

import (
	"fmt"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
)

func (p *podctl) inspectCommand() *command {
	return &command{
		name: "inspect", category: "Pods", args: "POD...", min: 1, max: unlimited,
		completes: []completer{completePods},
		usage:     "show everything about pods",
		description: `Shows what a pod was asked to be (the spec) and where it is now (the binding).
With -o json or yaml one pod gives an object and several give an array.`,
		examples: []string{
			"podctl inspect alice",
			"podctl inspect -o json alice | jq -r .physicalAddress",
		},
		flags:  []cli.Flag{outputFlag()},
		action: p.inspect,
	}
}

func (p *podctl) inspect(c *cli.Context) error {
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	var pods []podView
	failed := false
	for _, name := range c.Args().Slice() {
		response, err := client.pods.GetPod(c.Context, connect.NewRequest(&poddv1.GetPodRequest{Pod: name}))
		if err != nil {
			p.printError(fmt.Errorf("inspecting %s: %w", name, err))
			failed = true
			continue
		}
		pods = append(pods, viewPod(response.Msg.GetPod()))
	}
	if err := p.printPods(format, pods, c.NArg() == 1); err != nil {
		return err
	}
	if failed {
		return exitStatus(exitError)
	}
	return nil
}

// printPods prints pods in full. single asks for an object, not an array.
func (p *podctl) printPods(f format, pods []podView, single bool) error {
	switch {
	case f == formatName:
		return podListing.print(p.stdout, f, pods)
	case f == formatJSON || f == formatYAML:
		switch {
		case single && len(pods) == 1:
			return printDocument(p.stdout, f, pods[0])
		case single:
			return nil // the error says it
		}
		return podListing.print(p.stdout, f, pods)
	}
	for i, v := range pods {
		if i > 0 {
			fmt.Fprintln(p.stdout)
		}
		if err := p.describePod(v, f == formatWide); err != nil {
			return err
		}
	}
	return nil
}

// describePod prints one pod as lines of name and value.
func (p *podctl) describePod(v podView, wide bool) error {
	t := newTable(p.stdout)
	optional := func(name, value string) {
		if value != "" || wide {
			t.row(name, value)
		}
	}
	t.row("Name:", v.Name)
	t.row("Phase:", v.phase())
	optional("Reason:", v.Reason)
	optional("Move:", v.Move)
	optional("Packets held for:", v.held())
	if v.Arrival != nil {
		t.row("Memory:", v.Arrival.String())
	}
	t.row("Host:", v.Host)
	t.row("Public address:", v.PublicAddress)
	t.row("Virtual address:", v.VirtualAddress)
	t.row("Physical address:", v.PhysicalAddress)
	t.row("Label:", v.Label.String())
	t.row("Epoch:", fmt.Sprint(v.Epoch))
	t.row("Created:", timestamp(v.CreatedAt))
	optional("Started:", timestamp(v.StartedAt))
	optional("Stopped:", timestamp(v.StoppedAt))
	t.row("Image:", v.Spec.Image)
	optional("Image digest:", v.Spec.ImageDigest)
	t.row("Command:", commandLine(v.Spec.Command))
	optional("User:", v.Spec.User)
	optional("Working directory:", v.Spec.WorkDir)
	optional("Environment:", strings.Join(v.Spec.Env, " "))
	for _, volume := range v.Spec.Volumes {
		text := fmt.Sprintf("%s at %s (%s", volume.Source, volume.Destination, volume.Policy)
		if volume.ReadOnly {
			text += ", read-only"
		}
		t.row("Volume:", text+")")
	}
	optional("Memory limit:", limit(v.Spec.MemoryBytes, formatBytes))
	optional("CPU limit:", limit(v.Spec.MilliCPUs, func(n int64) string { return fmt.Sprintf("%g", float64(n)/1000) }))
	optional("Process limit:", limit(v.Spec.PIDs, func(n int64) string { return fmt.Sprint(n) }))
	return t.flush()
}

func limit(n int64, text func(int64) string) string {
	if n == 0 {
		return ""
	}
	return text(n)
}

// timestamp is a time for people; empty for none.
func timestamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format(time.RFC3339) + " (" + age(t) + ")"
}
