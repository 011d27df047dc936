package cli

import (
	"fmt"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/version"
)

// versionView is what version prints.
type versionView struct {
	Client string `json:"client"`
	// Server is absent when podd does not answer.
	Server *serverVersionView `json:"server,omitempty"`
}

type serverVersionView struct {
	Version string `json:"version"`
	Host    string `json:"host"`
	Kernel  string `json:"kernel"`
	CRIU    string `json:"criu"`
}

func (p *podctl) printVersion() error {
	_, err := fmt.Fprintf(p.stdout, "podctl %s\n", version.String())
	return err
}

func (p *podctl) versionCommand() *command {
	return &command{
		name: "version", category: "podctl", usage: "print the versions of podctl and podd",
		description: "Prints podctl's version, and the versions of the podd it asks, of the kernel that\nruns on and of its CRIU.",
		examples: []string{
			"podctl version",
			"podctl version --client       # podd need not run",
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "client", Usage: "do not ask podd"},
			outputFlag(),
		},
		action: p.version,
	}
}

func (p *podctl) version(c *cli.Context) error {
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	v := versionView{Client: version.String()}
	var failure error
	if !c.Bool("client") {
		v.Server, failure = p.serverVersion(c)
	}
	switch format {
	case formatJSON, formatYAML:
		err = printDocument(p.stdout, format, v)
	case formatName:
		_, err = fmt.Fprintln(p.stdout, v.Client)
	default:
		t := newTable(p.stdout)
		t.row("podctl", v.Client)
		if v.Server != nil {
			t.row("podd", v.Server.Version)
			t.row("host", v.Server.Host)
			t.row("kernel", v.Server.Kernel)
			t.row("CRIU", v.Server.CRIU)
		}
		err = t.flush()
	}
	if failure != nil {
		return failure
	}
	return err
}

func (p *podctl) serverVersion(c *cli.Context) (*serverVersionView, error) {
	client, err := p.client()
	if err != nil {
		return nil, err
	}
	response, err := client.hosts.GetVersion(c.Context, connect.NewRequest(&poddv1.GetVersionRequest{}))
	if err != nil {
		return nil, fmt.Errorf("asking podd for its version: %w", err)
	}
	m := response.Msg
	return &serverVersionView{m.GetVersion(), m.GetHost(), m.GetKernel(), criuVersion(m.GetCriuVersion())}, nil
}
