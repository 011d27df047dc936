package cli

import (
	"context"
	"fmt"
	"slices"
	"time"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"
	"google.golang.org/protobuf/types/known/durationpb"

	poddv1 "podd/api/podd/v1"
	"podd/trust"
)

func lifetimeFlag() cli.Flag {
	return &cli.DurationFlag{Name: "lifetime", Value: trust.TokenLifetime, Usage: "how long the token may be used, `DURATION`", DefaultText: "1h"}
}

func (p *podctl) joinTokenCommand() *command {
	return &command{
		name: "join-token", usage: "make a token that admits one host",
		description: `Prints a token that admits one daemon to the cluster, once, for some time. It has
the addresses of the cluster and the fingerprint of its authority, so the daemon
needs nothing else. Keep it secret until it is used.`,
		examples: []string{
			"podctl cluster join-token > token              # then, on the host: podd --join @token",
			"podctl cluster join-token --name b --lifetime 10m",
			"podctl cluster join-token | ssh root@b 'cat > /etc/podd/token'",
		},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "kind", Value: string(trust.KindHost), Usage: "the daemon that it admits: host or proxy"},
			&cli.StringFlag{Name: "name", Usage: "good for a daemon of that `NAME` only", DefaultText: "any"},
			lifetimeFlag(),
		},
		action: func(c *cli.Context) error {
			kind := trust.Kind(c.String("kind"))
			daemon, ok := daemonKinds[kind]
			if !ok {
				return &usageError{p.current, fmt.Sprintf("unknown kind %q: want host or proxy", kind)}
			}
			return p.createToken(c, &poddv1.CreateTokenRequest{Kind: string(kind), Name: c.String("name")},
				fmt.Sprintf("%s --join @FILE, on its machine, uses it", daemon.program))
		},
	}
}

func (p *podctl) userTokenCommand() *command {
	return &command{
		name: "user-token", args: "NAME", min: 1, max: 1, completes: []completer{completeNothing},
		usage: "make a token that admits one user",
		description: `Prints a token that admits a user to the cluster from anywhere, once. With it the
user's podctl gets a certificate that says who they are and what they may do. A
user who has certificates already gets another one.`,
		examples: []string{
			"podctl cluster user-token jane --role operator > token   # then, at jane's: podctl context add site @token",
			"podctl cluster user-token monitor --role viewer --lifetime 10m",
		},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "role", Usage: "what the user may do: admin, operator or viewer"},
			lifetimeFlag(),
		},
		action: func(c *cli.Context) error {
			if c.String("role") == "" {
				return &usageError{p.current, "no role given: want --role admin, operator or viewer"}
			}
			role, err := trust.ParseRole(c.String("role"))
			if err != nil {
				return err
			}
			return p.createToken(c, &poddv1.CreateTokenRequest{Kind: string(trust.KindUser), Name: c.Args().First(), Role: string(role)},
				"podctl context add CONTEXT @FILE, at the user's, uses it")
		},
	}
}

// createToken prints a token, and how it is used beside it.
func (p *podctl) createToken(c *cli.Context, request *poddv1.CreateTokenRequest, use string) error {
	lifetime := c.Duration("lifetime")
	if lifetime <= 0 {
		return &usageError{p.current, fmt.Sprintf("lifetime %s: want more than nothing", lifetime)}
	}
	request.Lifetime = durationpb.New(lifetime)
	client, err := p.client()
	if err != nil {
		return err
	}
	response, err := client.trust.CreateToken(c.Context, connect.NewRequest(request))
	if err != nil {
		return fmt.Errorf("making a token: %w", err)
	}
	if _, err := fmt.Fprintln(p.stdout, response.Msg.GetToken()); err != nil {
		return err
	}
	fmt.Fprintf(p.stderr, "good once, until %s; %s\n", response.Msg.GetExpiresAt().AsTime().Local().Format(time.DateTime), use)
	return nil
}

// tokenView is a token without its secret.
type tokenView struct {
	ID        string    `json:"id"`
	Kind      string    `json:"kind"`
	Name      string    `json:"name,omitempty"`
	Role      string    `json:"role,omitempty"`
	CreatedBy string    `json:"createdBy"`
	ExpiresAt time.Time `json:"expiresAt"`
	Used      bool      `json:"used"`
}

var tokenListing = listing[tokenView]{
	name: func(v tokenView) string { return v.ID },
	columns: []column[tokenView]{
		{title: "ID", text: func(v tokenView) string { return v.ID }},
		{title: "KIND", text: func(v tokenView) string { return v.Kind }},
		{title: "NAME", text: func(v tokenView) string { return v.Name }},
		{title: "ROLE", text: func(v tokenView) string { return v.Role }},
		{title: "USED", text: func(v tokenView) string {
			if v.Used {
				return "yes"
			}
			return "no"
		}},
		{title: "GOOD", text: func(v tokenView) string { return remaining(v.ExpiresAt) }},
		{title: "MADE BY", text: func(v tokenView) string { return v.CreatedBy }},
	},
}

func (p *podctl) tokenCommand() *command {
	return &command{
		name: "token", usage: "the tokens that were made",
		description: "A token admits a daemon or a user to the cluster, once. Tokens whose time is over\nare forgotten.",
		examples:    []string{"podctl cluster token ls"},
		subcommands: []*command{
			{
				name: "ls", aliases: []string{"list"}, usage: "list tokens",
				description: "Lists the tokens that may still be used, and those that were until their time is\nover. Their secrets are not kept anywhere.",
				examples:    []string{"podctl cluster token ls", "podctl cluster token ls -o json"},
				flags:       []cli.Flag{outputFlag()},
				action:      p.tokenList,
			},
			{
				name: "rm", args: "ID...", min: 1, max: unlimited, completes: []completer{completeTokens},
				usage: "delete tokens", notFound: "podctl cluster token ls lists the tokens",
				description: "Deletes tokens: nobody is admitted by them any more. Who was admitted before\nstays.",
				examples:    []string{"podctl cluster token rm h3k9qz2a"},
				action: func(c *cli.Context) error {
					return p.forEach(c, "deleting token", func(ctx context.Context, client *client, id string) error {
						_, err := client.trust.DeleteToken(ctx, connect.NewRequest(&poddv1.DeleteTokenRequest{Id: id}))
						return err
					})
				},
			},
		},
	}
}

func (p *podctl) tokenList(c *cli.Context) error {
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	tokens, err := p.tokens(c.Context)
	if err != nil {
		return fmt.Errorf("listing tokens: %w", err)
	}
	return tokenListing.print(p.stdout, format, tokens)
}

// tokens are those the cluster knows, the first to end first.
func (p *podctl) tokens(ctx context.Context) ([]tokenView, error) {
	client, err := p.client()
	if err != nil {
		return nil, err
	}
	response, err := client.trust.ListTokens(ctx, connect.NewRequest(&poddv1.ListTokensRequest{}))
	if err != nil {
		return nil, err
	}
	var tokens []tokenView
	for _, t := range response.Msg.GetTokens() {
		tokens = append(tokens, tokenView{t.GetId(), t.GetKind(), t.GetName(), t.GetRole(), t.GetCreatedBy(), t.GetExpiresAt().AsTime(), t.GetUsed()})
	}
	slices.SortFunc(tokens, func(a, b tokenView) int { return a.ExpiresAt.Compare(b.ExpiresAt) })
	return tokens, nil
}

func revokeUser(ctx context.Context, client *client, name string) error {
	_, err := client.trust.RevokeUser(ctx, connect.NewRequest(&poddv1.RevokeUserRequest{Name: name}))
	return err
}

func completeTokens(ctx context.Context, p *podctl) []candidate {
	tokens, err := p.tokens(ctx)
	if err != nil {
		return nil
	}
	var out []candidate
	for _, t := range tokens {
		out = append(out, candidate{t.ID, fmt.Sprintf("%s %s, %s", t.Kind, t.Name, remaining(t.ExpiresAt))})
	}
	return out
}

func completeUsers(ctx context.Context, p *podctl) []candidate {
	client, err := p.client()
	if err != nil {
		return nil
	}
	response, err := client.trust.ListMembers(ctx, connect.NewRequest(&poddv1.ListMembersRequest{}))
	if err != nil {
		return nil
	}
	var out []candidate
	for _, m := range response.Msg.GetMembers() {
		if m.GetKind() == string(trust.KindUser) {
			out = append(out, candidate{m.GetName(), m.GetRole()})
		}
	}
	return out
}
