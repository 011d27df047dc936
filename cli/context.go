package cli

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"podd/pod"
	"podd/trust"
)

// contextView is a context; the one in use has Current set.
type contextView struct {
	Name    string   `json:"name"`
	Current bool     `json:"current"`
	Hosts   []string `json:"hosts"`
	// User, Role and ExpiresAt are those of the certificate; a context of
	// this machine's socket has none.
	User      string     `json:"user,omitempty"`
	Role      trust.Role `json:"role,omitempty"`
	ExpiresAt time.Time  `json:"expiresAt,omitzero"`
	// Problem is why the certificate can't be used.
	Problem string `json:"problem,omitempty"`
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
		{title: "USER", text: func(v contextView) string { return v.User }},
		{title: "ROLE", text: func(v contextView) string { return string(v.Role) }},
		{title: "CERTIFICATE", text: func(v contextView) string { return cmp.Or(v.Problem, remaining(v.ExpiresAt)) }},
		{title: "HOST", text: func(v contextView) string { return strings.Join(v.Hosts, ", ") }},
	},
}

// views lists the contexts, the default one among them.
func (c *config) views() []contextView {
	all := map[string]contextConfig{defaultContext: {Host: localAddress(defaultSocket, proxySocket).String()}}
	for name, context := range c.Contexts {
		all[name] = context
	}
	var out []contextView
	for name, context := range all {
		v := contextView{Name: name, Current: name == cmp.Or(c.Current, defaultContext), Hosts: context.addresses()}
		switch target, err := context.target(name); {
		case err != nil:
			v.Problem = "unusable: " + err.Error()
		case target.store != nil:
			identity := target.store.Identity()
			v.User, v.Role, v.ExpiresAt = identity.Name, identity.Role, target.store.Leaf().NotAfter.UTC()
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b contextView) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (p *podctl) contextCommand() *command {
	const unknown = "podctl context ls lists the contexts"
	return &command{
		name: "context", category: "podctl", usage: "the clusters and daemons that podctl may ask",
		description: `A context is a name for a cluster and a certificate to show there, or for a
daemon's socket on this machine. The context "default" is this machine's daemon.
Contexts are kept in $XDG_CONFIG_HOME/podctl/config.toml, certificates and keys
beside it, for the user alone.`,
		examples: []string{
			"podctl context add site @token",
			"podctl context use site",
			"podctl --context default ps",
		},
		subcommands: []*command{
			{
				name: "add", args: "NAME TOKEN|@FILE|-|SOCKET", min: 2, max: 2, completes: []completer{completeNothing, completeFiles},
				usage: "add a context, or change one",
				description: `Exchanges a token for a certificate. TOKEN is what "podctl cluster user-token"
printed; @FILE reads it from a file, and - from standard input. It is used up by
that. The key is made here and never leaves this machine. podctl renews the
certificate by itself when half of its life is over.

SOCKET, unix:///PATH, is a daemon of this machine instead: who may open it needs
no certificate.`,
				examples: []string{
					"podctl context add site @token",
					"ssh root@proxy podctl cluster user-token jane --role operator | podctl context add site -",
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
				description: `Lists the contexts, with the role and the end of their certificates. A star marks
the one that was chosen by podctl context use.`,
				examples: []string{"podctl context ls", "podctl context ls -o json"},
				flags:    []cli.Flag{outputFlag()},
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
				description: `Forgets contexts, and deletes their keys. Without the one in use the default is
used again.`,
				examples: []string{"podctl context rm site"},
				action:   p.contextRemove,
			},
		},
	}
}

func (p *podctl) contextAdd(c *cli.Context) error {
	name, what := c.Args().Get(0), c.Args().Get(1)
	if err := pod.ValidateName(name); err != nil {
		return fmt.Errorf("adding a context: %w", err)
	}
	if filepath.IsAbs(what) || strings.Contains(what, "://") {
		return addSocket(name, what)
	}
	token, err := trust.ReadToken(what, p.stdin)
	trust.HideArgument(what)
	if err != nil {
		return fmt.Errorf("adding a context: %w", err)
	}
	membership, err := redeem(c.Context, token)
	if err != nil {
		return fmt.Errorf("adding a context: %w", err)
	}
	store, err := storeCredentials(name, membership)
	if err != nil {
		return fmt.Errorf("adding a context: %w", err)
	}
	err = editConfig(func(config *config) error {
		context := contextConfig{Previous: config.Contexts[name].Previous}
		for _, to := range token.Addresses {
			context.Hosts = append(context.Hosts, address{"tcp", to}.String())
		}
		config.set(name, context)
		return nil
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(p.stderr, "%s is %s until %s; \"podctl context use %s\" makes it the one in use\n",
		name, store.Identity(), store.Leaf().NotAfter.Local().Format(time.DateTime), name)
	return nil
}

// addSocket adds the context of a daemon's socket.
func addSocket(name, text string) error {
	a, err := parseAddress(text)
	if err == nil && a.network != "unix" {
		err = &hintedError{fmt.Errorf("%w: %s: a cluster is added by a token, which has its addresses", pod.ErrInvalid, text), needToken}
	}
	if err != nil {
		return fmt.Errorf("adding a context: %w", err)
	}
	return editConfig(func(config *config) error {
		config.set(name, contextConfig{Host: a.String()})
		return removeCredentials(name)
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
			if err := removeCredentials(name); err != nil {
				return err
			}
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
