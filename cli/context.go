package cli

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"podd/pod"
)

// contextView is a context; the one in use has Current set.
type contextView struct {
	Name    string `json:"name"`
	Current bool   `json:"current"`
	Host    string `json:"host"`
}

var contextListing = listing[contextView]{
	name: func(v contextView) string { return v.Name },
	columns: []column[contextView]{
		{title: "NAME", text: func(v contextView) string { return v.Name }},
		{title: "CURRENT", text: func(v contextView) string {
			if v.Current {
				return "*"
			}
			return ""
		}},
		{title: "HOST", text: func(v contextView) string { return v.Host }},
	},
}

// views lists the contexts, the default one among them.
func (c *config) views() []contextView {
	out := []contextView{{Name: defaultContext, Host: "unix://" + defaultSocket, Current: c.Current == "" || c.Current == defaultContext}}
	for name, context := range c.Contexts {
		v := contextView{Name: name, Host: context.Host, Current: name == c.Current}
		if name == defaultContext {
			v.Current = out[0].Current
			out[0] = v
			continue
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b contextView) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (p *podctl) contextCommand() *command {
	const unknown = "podctl context ls lists the contexts"
	return &command{
		name: "context", category: "podctl", usage: "the podds that podctl may ask",
		description: `A context is a name for a podd. The context "default" is the podd of this
machine. Contexts are kept in $XDG_CONFIG_HOME/podctl/config.toml.`,
		examples: []string{
			"podctl context add site http://10.10.1.2:7443",
			"podctl context use site",
			"podctl --context default ps",
		},
		subcommands: []*command{
			{
				name: "add", args: "NAME ADDRESS", min: 2, max: 2, completes: []completer{completeNothing},
				usage: "add a context, or change one",
				description: `ADDRESS is unix:///PATH or http://HOST:PORT. Over TCP nothing is encrypted and
anybody may connect: use it on networks that only hosts are on.`,
				examples: []string{
					"podctl context add site http://10.10.1.2:7443",
					"podctl context add test unix:///tmp/test/podd.sock",
				},
				action: p.contextAdd,
			},
			{
				name: "use", args: "NAME", min: 1, max: 1, completes: []completer{completeContexts, completeNothing},
				usage: "choose the context to use from now on", notFound: unknown,
				description: "PODCTL_CONTEXT and PODCTL_HOST in the environment, and flags, win over the choice.",
				examples:    []string{"podctl context use site", "podctl context use default"},
				action:      p.contextUse,
			},
			{
				name: "ls", aliases: []string{"list"}, usage: "list contexts",
				description: "Lists the contexts. A star marks the one that was chosen by podctl context use.",
				examples:    []string{"podctl context ls", "podctl context ls -o json"},
				flags:       []cli.Flag{outputFlag()},
				action: func(c *cli.Context) error {
					format, err := p.outputFormat(c)
					if err != nil {
						return err
					}
					config, err := loadConfig()
					if err != nil {
						return err
					}
					return contextListing.print(p.stdout, format, config.views())
				},
			},
			{
				name: "rm", args: "NAME...", min: 1, max: unlimited, completes: []completer{completeContexts},
				usage: "forget contexts", notFound: unknown,
				description: "Forgets contexts. Without the one in use the default is used again.",
				examples:    []string{"podctl context rm site"},
				action:      p.contextRemove,
			},
		},
	}
}

func (p *podctl) contextAdd(c *cli.Context) error {
	name, host := c.Args().Get(0), c.Args().Get(1)
	if err := pod.ValidateName(name); err != nil {
		return fmt.Errorf("adding a context: %w", err)
	}
	address, err := parseAddress(host)
	if err != nil {
		return fmt.Errorf("adding a context: %w", err)
	}
	return editConfig(func(config *config) error {
		config.set(name, contextConfig{Host: address.String()})
		return nil
	})
}

func (p *podctl) contextUse(c *cli.Context) error {
	name := c.Args().First()
	return editConfig(func(config *config) error {
		if _, ok := config.Contexts[name]; !ok && name != defaultContext {
			return fmt.Errorf("%w: context %q", pod.ErrNotFound, name)
		}
		config.Current = name
		return nil
	})
}

func (p *podctl) contextRemove(c *cli.Context) error {
	return editConfig(func(config *config) error {
		for _, name := range c.Args().Slice() {
			if _, ok := config.Contexts[name]; !ok {
				return fmt.Errorf("%w: context %q", pod.ErrNotFound, name)
			}
			config.remove(name)
		}
		return nil
	})
}

// editConfig changes the configuration file.
func editConfig(edit func(*config) error) error {
	config, err := loadConfig()
	if err != nil {
		return err
	}
	if err := edit(config); err != nil {
		return err
	}
	return config.save()
}
