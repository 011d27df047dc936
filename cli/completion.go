package cli

import (
	"context"
	"embed"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

//go:embed completion
var completionScripts embed.FS

// completionLimit bounds how long pressing the tab key may take.
const completionLimit = 2 * time.Second

// candidate is one way to go on with a command line.
type candidate struct{ value, description string }

// A completer lists the names that an argument may be. Names that need podd are
// left out when it does not answer: completion never prints errors.
type completer func(ctx context.Context, p *podctl) []candidate

// fileNames and commandNames stand for lists that the shell knows best.
var (
	fileNames    = []candidate{{value: ":files"}}
	commandNames = []candidate{{value: ":commands"}}
)

func completeNothing(context.Context, *podctl) []candidate  { return nil }
func completeFiles(context.Context, *podctl) []candidate    { return fileNames }
func completeCommands(context.Context, *podctl) []candidate { return commandNames }

func completePods(ctx context.Context, p *podctl) []candidate {
	client, err := p.client()
	if err != nil {
		return nil
	}
	response, err := client.pods.ListPods(ctx, connect.NewRequest(&poddv1.ListPodsRequest{}))
	if err != nil {
		return nil
	}
	var out []candidate
	for _, message := range response.Msg.GetPods() {
		v := viewPod(message)
		out = append(out, candidate{v.Name, v.phase() + " on " + v.Host})
	}
	return out
}

func completeHosts(ctx context.Context, p *podctl) []candidate {
	client, err := p.client()
	if err != nil {
		return nil
	}
	response, err := client.hosts.ListHosts(ctx, connect.NewRequest(&poddv1.ListHostsRequest{}))
	if err != nil {
		return nil
	}
	var out []candidate
	for _, message := range response.Msg.GetHosts() {
		v := viewHost(message)
		out = append(out, candidate{v.Name, fmt.Sprintf("%s, %d pods", v.state(), v.Pods)})
	}
	return out
}

func completeImages(ctx context.Context, p *podctl) []candidate {
	client, err := p.client()
	if err != nil {
		return nil
	}
	response, err := client.images.ListImages(ctx, connect.NewRequest(&poddv1.ListImagesRequest{}))
	if err != nil {
		return nil
	}
	var out []candidate
	for _, message := range response.Msg.GetImages() {
		out = append(out, candidate{message.GetName(), formatBytes(message.GetSize())})
	}
	return out
}

func completeMoves(ctx context.Context, p *podctl) []candidate {
	return listMoves(ctx, p, func(moveView) bool { return true })
}

// completeOpenMoves leaves out those that are over.
func completeOpenMoves(ctx context.Context, p *podctl) []candidate {
	return listMoves(ctx, p, func(v moveView) bool { return v.State == pod.MoveQueued || v.State == pod.MoveRunning })
}

func listMoves(ctx context.Context, p *podctl, wanted func(moveView) bool) []candidate {
	client, err := p.client()
	if err != nil {
		return nil
	}
	response, err := client.moves.ListMoves(ctx, connect.NewRequest(&poddv1.ListMovesRequest{}))
	if err != nil {
		return nil
	}
	var out []candidate
	for _, message := range response.Msg.GetMoves() {
		if v := viewMove(message); wanted(v) {
			out = append(out, candidate{v.ID, fmt.Sprintf("%s from %s to %s, %s", v.Pod, v.Source, v.Target, v.State)})
		}
	}
	return out
}

func completeContexts(context.Context, *podctl) []candidate {
	config, err := loadConfig()
	if err != nil {
		return nil
	}
	var out []candidate
	for _, v := range config.views() {
		out = append(out, candidate{v.Name, strings.Join(v.Hosts, ", ")})
	}
	return out
}

func completeWords(words ...string) completer {
	return func(context.Context, *podctl) []candidate {
		var out []candidate
		for _, word := range words {
			out = append(out, candidate{value: word})
		}
		return out
	}
}

// flagCompleters complete the values of flags, by the flag's long name. The
// values of others are free text, or files.
var flagCompleters = map[string]completer{
	"cancel":   completeOpenMoves,
	"context":  completeContexts,
	"socket":   completeFiles,
	"env-file": completeFiles,
	"file":     completeFiles,
	"identity": completeFiles,
	"volume":   completeFiles,
	"host":     completeHosts,
	"image":    completeImages,
	"output":   completeWords("table", "wide", "json", "yaml", "name"),
	"strategy": completeWords("auto", "stop-copy", "pre-copy", "post-copy", "checkpoint-server"),
	"role":     completeWords("viewer", "operator", "admin"),
	"kind":     completeWords("host", "proxy"),
	"signal":   completeWords("TERM", "KILL", "HUP", "INT", "QUIT", "USR1", "USR2", "STOP", "CONT"),
}

func (p *podctl) completionCommand() *command {
	return &command{
		name: "completion", category: "podctl", args: "bash|zsh|fish", min: 1, max: 1,
		completes: []completer{completeWords("bash", "zsh", "fish"), completeNothing},
		usage:     "print the completion script for a shell",
		description: `With the script loaded, the tab key completes commands, options, and the names
of pods, hosts, images and moves as podd knows them.`,
		examples: []string{
			"source <(podctl completion bash)",
			"podctl completion bash > /etc/bash_completion.d/podctl",
			"podctl completion zsh > \"${fpath[1]}/_podctl\"",
			"podctl completion fish > ~/.config/fish/completions/podctl.fish",
		},
		action: func(c *cli.Context) error {
			script, err := completionScripts.ReadFile("completion/podctl." + c.Args().First())
			if err != nil {
				return &usageError{p.current, fmt.Sprintf("unknown shell %q: want bash, zsh or fish", c.Args().First())}
			}
			_, err = p.stdout.Write(script)
			return err
		},
	}
}

// completeWord is the first word of what the completion scripts call; the words
// typed so far follow, and the last may be empty.
const completeWord = "__complete"

// printCandidates prints how a command line can go on: a candidate a line, with
// a tab and a description where there is one.
func (p *podctl) printCandidates(ctx context.Context, words []string) error {
	ctx, cancel := context.WithTimeout(ctx, completionLimit)
	defer cancel()
	for _, candidate := range p.complete(ctx, words) {
		line := candidate.value
		if candidate.description != "" {
			line += "\t" + candidate.description
		}
		if _, err := fmt.Fprintln(p.stdout, line); err != nil {
			return err
		}
	}
	return nil
}

// complete lists how the last of the words can go on.
func (p *podctl) complete(ctx context.Context, words []string) []candidate {
	last := ""
	if len(words) > 0 {
		last, words = words[len(words)-1], words[:len(words)-1]
	}
	a := takeApart(p.root, words)
	p.connection = connectionOf(a.global)
	var all []candidate
	switch {
	case a.awaits != nil:
		all = p.completeFlag(ctx, a.awaits, "")
	case strings.HasPrefix(last, "--") && strings.Contains(last, "=") && !a.ended:
		name, _, _ := strings.Cut(last, "=")
		flag, _ := findFlag(a.command, name)
		if flag == nil {
			flag, _ = findFlag(p.root, name)
		}
		all = p.completeFlag(ctx, flag, name+"=")
	case strings.HasPrefix(last, "-") && !a.ended:
		all = flagCandidates(a.command)
	case len(a.args) == 0 && len(a.command.subcommands) > 0:
		for _, sub := range a.command.subcommands {
			all = append(all, candidate{sub.name, sub.usage})
		}
		fallthrough // "move" has subcommands and arguments
	default:
		if n := len(a.command.completes); n > 0 {
			at := len(a.args)
			if inner := a.command.inner; inner > 0 && at >= inner && a.args[inner-1] == "--" {
				at-- // stands before the inner command and is no word of it
			}
			all = append(all, a.command.completes[min(at, n-1)](ctx, p)...)
		}
	}
	var out []candidate
	for _, candidate := range all {
		if strings.HasPrefix(candidate.value, last) || strings.HasPrefix(candidate.value, ":") {
			out = append(out, candidate)
		}
	}
	return out
}

// completeFlag lists the values a flag may have, each after a prefix.
func (p *podctl) completeFlag(ctx context.Context, flag cli.Flag, prefix string) []candidate {
	if flag == nil || flagCompleters[flag.Names()[0]] == nil {
		return nil
	}
	out := slices.Clone(flagCompleters[flag.Names()[0]](ctx, p))
	for i := range out {
		if !strings.HasPrefix(out[i].value, ":") {
			out[i].value = prefix + out[i].value
		}
	}
	return out
}

func flagCandidates(c *command) []candidate {
	var out []candidate
	for _, flag := range slices.Concat(c.flags, []cli.Flag{cli.HelpFlag}) {
		description := ""
		if documented, ok := flag.(cli.DocGenerationFlag); ok {
			description = strings.ReplaceAll(documented.GetUsage(), "`", "")
		}
		out = append(out, candidate{"--" + flag.Names()[0], description})
	}
	return out
}

// connectionOf reads the global flags from words that takeApart found.
func connectionOf(words []string) connection {
	var c connection
	fields := map[string]*string{"context": &c.context, "socket": &c.socket, "url": &c.url}
	for i := 0; i < len(words); i++ {
		name, value, hasValue := strings.Cut(strings.TrimLeft(words[i], "-"), "=")
		field := fields[name]
		if field == nil {
			continue
		}
		if !hasValue && i+1 < len(words) {
			i++
			value = words[i]
		}
		*field = value
	}
	return c
}
