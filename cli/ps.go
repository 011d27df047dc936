package cli

import (
	"fmt"
	"slices"
	"strings"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

var podListing = listing[podView]{
	name: func(v podView) string { return v.Name },
	columns: []column[podView]{
		{title: "NAME", text: func(v podView) string { return v.Name }},
		{title: "PHASE", text: podView.phase},
		{title: "HOST", text: func(v podView) string { return v.Host }},
		{title: "ADDRESS", text: func(v podView) string { return v.PublicAddress }},
		{title: "CREATED", text: func(v podView) string { return age(v.CreatedAt) }},
		{title: "IMAGE", text: func(v podView) string { return v.Spec.Image }},
		{title: "VIRTUAL", text: func(v podView) string { return v.VirtualAddress }, wide: true},
		{title: "PHYSICAL", text: func(v podView) string { return v.PhysicalAddress }, wide: true},
		{title: "LABEL", text: func(v podView) string { return v.Label.String() }, wide: true},
		{title: "EPOCH", text: func(v podView) string { return fmt.Sprint(v.Epoch) }, wide: true},
		{title: "HELD", text: podView.held, wide: true},
		{title: "USER", text: func(v podView) string { return v.Spec.User }, wide: true},
		{title: "COMMAND", text: func(v podView) string { return shorten(commandLine(v.Spec.Command), 40) }},
	},
}

func (p *podctl) psCommand() *command {
	return &command{
		name: "ps", aliases: []string{"ls"}, category: "Pods",
		usage: "list pods",
		description: `Lists the pods of all hosts: those that run, or with -a all of them.

With -o wide, HELD is how long the proxy has queued a moving pod's packets.`,
		examples: []string{
			"podctl ps                    # pods that run",
			"podctl ps -a -o wide         # all, with every address",
			"podctl ps -q --host a        # only the names, only host a",
			"podctl ps -o json | jq -r '.[] | \"\\(.name) \\(.publicAddress)\"'",
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "also list pods that have stopped or failed"},
			&cli.StringFlag{Name: "host", Usage: "list only the pods on `HOST`"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print only names, as -o name"},
			outputFlag(),
		},
		action: p.ps,
	}
}

func (p *podctl) ps(c *cli.Context) error {
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	if c.Bool("quiet") {
		format = formatName
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	response, err := client.pods.ListPods(c.Context, connect.NewRequest(&poddv1.ListPodsRequest{}))
	if err != nil {
		return fmt.Errorf("listing pods: %w", err)
	}
	var pods []podView
	for _, message := range response.Msg.GetPods() {
		v := viewPod(message)
		if over := v.Phase == pod.PhaseStopped || v.Phase == pod.PhaseFailed; over && !c.Bool("all") {
			continue
		}
		if host := c.String("host"); host != "" && v.Host != host {
			continue
		}
		pods = append(pods, v)
	}
	slices.SortFunc(pods, func(a, b podView) int { return strings.Compare(a.Name, b.Name) })
	return podListing.print(p.stdout, format, pods)
}

// commandLine writes a command as it could be typed.
func commandLine(words []string) string {
	var quoted []string
	for _, word := range words {
		if word == "" || strings.ContainsAny(word, " \t\n\"'$&|;<>()*?[]#~`\\") {
			word = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
		}
		quoted = append(quoted, word)
	}
	return strings.ReplaceAll(strings.Join(quoted, " "), "\n", " ")
}

// shorten cuts text to at most n characters.
func shorten(text string, n int) string {
	if runes := []rune(text); len(runes) > n {
		return string(runes[:n-1]) + "…"
	}
	return text
}
