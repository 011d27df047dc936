package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

func (p *podctl) clusterCommand() *command {
	return &command{
		name: "cluster", category: "Hosts and images", usage: "who belongs to the cluster, and who may do what",
		description: `Daemons and users of a cluster know each other by certificates. The first daemon,
on whose machine "podctl cluster init" ran, issues them; a token admits one
further daemon, or one user, once.

Roles: a viewer may look; an operator may also run, stop and move pods and work
in them; an admin may do everything. Who may open a daemon's socket on its own
machine is an admin.`,
		examples: []string{
			"podctl cluster init --address 10.10.0.2        # on the proxy's machine",
			"podctl cluster join-token > token              # then, on a host: podd --join @token",
			"podctl cluster user-token jane --role operator # then, at jane's: podctl context add site @token",
			"podctl cluster members",
		},
		subcommands: []*command{
			p.clusterInitCommand(), p.joinTokenCommand(), p.userTokenCommand(), p.tokenCommand(),
			{
				name: "members", usage: "list the daemons and users that have certificates",
				description: "Lists the daemons and users of the cluster, and how long their certificates are\ngood. Daemons renew theirs long before; podctl renews its user's as it is used.",
				examples:    []string{"podctl cluster members", "podctl cluster members -o json"},
				flags:       []cli.Flag{outputFlag()},
				action:      p.clusterMembers,
			},
			{
				name: "status", usage: "show the cluster's authority, and who the caller is",
				description: "Shows the fingerprint of the cluster's certificate authority, the daemons that\nissue certificates, the public key that checkpoint files are encrypted to, and as\nwhom the daemon knows the caller.",
				examples:    []string{"podctl cluster status", "podctl --context site cluster status -o json"},
				flags:       []cli.Flag{outputFlag()},
				action:      p.clusterStatus,
			},
			{
				name: "user", usage: "the users of the cluster",
				description: "Users are made by tokens: see podctl help cluster user-token.",
				examples:    []string{"podctl cluster user rm jane"},
				subcommands: []*command{{
					name: "rm", args: "NAME...", min: 1, max: unlimited, completes: []completer{completeUsers},
					usage: "take users' certificates back", notFound: "podctl cluster members lists the users",
					description: "Revokes the certificates of users: from now on every daemon refuses them, and\nends the calls of theirs that are under way.",
					examples:    []string{"podctl cluster user rm jane"},
					action:      p.userRemove,
				}},
			},
		},
	}
}

// memberView is a holder of certificates.
type memberView struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
	Role string `json:"role,omitempty"`
	// ExpiresAt is the end of the newest certificate.
	ExpiresAt time.Time `json:"expiresAt,omitzero"`
}

var memberListing = listing[memberView]{
	name: func(v memberView) string { return v.Kind + "/" + v.Name },
	columns: []column[memberView]{
		{title: "KIND", text: func(v memberView) string { return v.Kind }},
		{title: "NAME", text: func(v memberView) string { return v.Name }},
		{title: "ROLE", text: func(v memberView) string { return v.Role }},
		{title: "CERTIFICATE", text: func(v memberView) string { return remaining(v.ExpiresAt) }},
		{title: "EXPIRES", text: func(v memberView) string { return v.ExpiresAt.Format(time.RFC3339) }, wide: true},
	},
}

// remaining is how long something is still good; empty for no time.
func remaining(end time.Time) string {
	switch left := time.Until(end); {
	case end.IsZero():
		return ""
	case left <= 0:
		return "expired"
	default:
		return strings.ToLower(units.HumanDuration(left)) + " left"
	}
}

func (p *podctl) clusterMembers(c *cli.Context) error {
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	response, err := client.trust.ListMembers(c.Context, connect.NewRequest(&poddv1.ListMembersRequest{}))
	if err != nil {
		return fmt.Errorf("listing the members: %w", err)
	}
	var members []memberView
	for _, m := range response.Msg.GetMembers() {
		members = append(members, memberView{m.GetKind(), m.GetName(), m.GetRole(), m.GetExpiresAt().AsTime()})
	}
	slices.SortFunc(members, func(a, b memberView) int { return strings.Compare(a.Kind+" "+a.Name, b.Kind+" "+b.Name) })
	return memberListing.print(p.stdout, format, members)
}

// clusterView is what cluster status prints.
type clusterView struct {
	// Fingerprint is the SHA-256 of the authority's certificate.
	Fingerprint string `json:"fingerprint"`
	// Recipient is the public key of checkpoint files.
	Recipient string   `json:"recipient"`
	Issuers   []string `json:"issuers"`
	You       string   `json:"you"`
	Role      string   `json:"role"`
}

func (p *podctl) clusterStatus(c *cli.Context) error {
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	response, err := client.trust.GetTrust(c.Context, connect.NewRequest(&poddv1.GetTrustRequest{}))
	if err != nil {
		return fmt.Errorf("asking about the cluster: %w", err)
	}
	m := response.Msg
	authority, _ := pem.Decode([]byte(m.GetAuthority()))
	if authority == nil {
		return fmt.Errorf("%w: the daemon's answer has no certificate", pod.ErrUntrusted)
	}
	sum := sha256.Sum256(authority.Bytes)
	v := clusterView{hex.EncodeToString(sum[:]), m.GetRecipient(), m.GetIssuers(), m.GetYou(), m.GetYourRole()}
	switch format {
	case formatJSON, formatYAML:
		return printDocument(p.stdout, format, v)
	case formatName:
		_, err := fmt.Fprintln(p.stdout, v.Fingerprint)
		return err
	}
	t := newTable(p.stdout)
	t.row("authority", v.Fingerprint)
	t.row("issuers", strings.Join(v.Issuers, ", "))
	t.row("recipient", v.Recipient)
	t.row("you", v.You)
	t.row("your role", v.Role)
	return t.flush()
}

func (p *podctl) userRemove(c *cli.Context) error {
	return p.forEach(c, "revoking the certificates of user", revokeUser)
}
