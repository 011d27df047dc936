package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	poddv1 "podd/api/podd/v1"
	"podd/doctor"
	"podd/pod"
)

// exitUnwell is doctor's verdict when it has found an error.
const exitUnwell = 1

func (p *podctl) doctorCommand() *command {
	return &command{
		name: "doctor", category: "Hosts and images", args: "[HOST]", max: 1,
		completes: []completer{completeHosts, completeNothing},
		notFound:  "podctl host ls lists the hosts",
		usage:     "find out what is wrong, and what to do about it",
		description: `Looks at a host, or at all of them and the proxy: CRIU, kernel, parameters,
clock, path to the proxy, directory, space, certificate, and what differs from
the directory. What could be better is a warning; what keeps pods from running,
moving or being reached is an error. Below either stands what to do, as a command
to be run as root on the machine in question. Nothing is changed.

The exit code is 0 if there is no error and 1 if there is one.`,
		examples: []string{
			"podctl doctor",
			"podctl doctor a",
			"podctl doctor -q              # only what is not as it should be",
			"podctl doctor -o json | jq -r '.[].findings[] | select(.severity != \"ok\").remedy'",
		},
		flags: []cli.Flag{
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "show only warnings and errors"},
			outputFlag(),
		},
		action: p.doctor,
	}
}

// checkupView is what was found on one machine.
type checkupView struct {
	// Kind is "host" or "proxy".
	Kind     string        `json:"kind"`
	Name     string        `json:"name"`
	Findings []findingView `json:"findings"`
}

type findingView struct {
	Check    string          `json:"check"`
	Severity doctor.Severity `json:"severity"`
	Detail   string          `json:"detail"`
	Remedy   string          `json:"remedy,omitempty"`
}

func (p *podctl) doctor(c *cli.Context) error {
	format, err := p.outputFormat(c)
	if err != nil {
		return err
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	var checkups []checkupView
	if host := c.Args().First(); host != "" {
		checkup, err := client.checkHost(c.Context, host)
		if err != nil {
			return fmt.Errorf("looking at host %s: %w", host, err)
		}
		checkups = []checkupView{checkup}
	} else if checkups, err = client.checkAll(c.Context); err != nil {
		return err
	}
	unwell := false
	for i, checkup := range checkups {
		unwell = unwell || slices.ContainsFunc(checkup.Findings, func(f findingView) bool { return f.Severity == doctor.Error })
		if c.Bool("quiet") {
			checkups[i].Findings = slices.DeleteFunc(checkup.Findings, func(f findingView) bool { return f.Severity == doctor.OK })
		}
	}
	if err := p.printCheckups(format, checkups); err != nil {
		return err
	}
	if unwell {
		return exitStatus(exitUnwell)
	}
	return nil
}

// checkAll looks at every host and at the proxy, all at the same time.
func (c *client) checkAll(ctx context.Context) ([]checkupView, error) {
	response, err := c.hosts.ListHosts(ctx, connect.NewRequest(&poddv1.ListHostsRequest{}))
	if err != nil {
		return nil, fmt.Errorf("listing hosts: %w", err)
	}
	hosts := response.Msg.GetHosts()
	slices.SortFunc(hosts, func(a, b *poddv1.Host) int { return strings.Compare(a.GetName(), b.GetName()) })
	checkups := make([]checkupView, len(hosts)+1)
	var wait sync.WaitGroup
	for i, host := range hosts {
		wait.Go(func() {
			checkup, err := c.checkHost(ctx, host.GetName())
			if !host.GetAlive() || err != nil {
				checkup = unreachable(host, err)
			}
			checkups[i] = checkup
		})
	}
	wait.Go(func() {
		checkup, err := c.check(ctx, "proxy", &poddv1.CheckHostRequest{Proxy: true})
		if err != nil {
			checkup = checkupView{Kind: "proxy", Findings: []findingView{{
				Check: "proxy", Severity: doctor.Error, Detail: err.Error(), Remedy: "systemctl status podproxy   # on the machine that clients' packets for pods are routed to",
			}}}
		}
		checkups[len(hosts)] = checkup
	})
	wait.Wait()
	return checkups, ctx.Err()
}

// checkHost looks at one host. That it can't be reached is a finding; that there
// is none of that name, or that the caller may not ask, an error.
func (c *client) checkHost(ctx context.Context, name string) (checkupView, error) {
	checkup, err := c.check(ctx, "host", &poddv1.CheckHostRequest{Host: name})
	if errors.Is(err, pod.ErrUnavailable) && c.unreachable.Load() == nil {
		return unreachable(&poddv1.Host{Name: name, Alive: true}, err), nil
	}
	return checkup, err
}

func (c *client) check(ctx context.Context, kind string, request *poddv1.CheckHostRequest) (checkupView, error) {
	response, err := c.hosts.CheckHost(ctx, connect.NewRequest(request))
	if err != nil {
		return checkupView{}, err
	}
	checkup := checkupView{Kind: kind, Name: response.Msg.GetHost(), Findings: []findingView{}}
	for _, f := range doctor.FromProto(response.Msg.GetFindings()) {
		checkup.Findings = append(checkup.Findings, findingView(f))
	}
	return checkup, nil
}

// unreachable is what is found of a host that can't be asked.
func unreachable(host *poddv1.Host, err error) checkupView {
	f := findingView{Check: "podd", Severity: doctor.Error, Detail: "its podd is down",
		Remedy: fmt.Sprintf("systemctl start podd   # on %s; if it will not come back: podctl host rm %s", host.GetName(), host.GetName())}
	if host.GetAlive() {
		f.Detail, f.Remedy = fmt.Sprintf("it can't be asked: %v", err), fmt.Sprintf("systemctl status podd   # on %s; is it reachable from the other hosts?", host.GetName())
	}
	return checkupView{Kind: "host", Name: host.GetName(), Findings: []findingView{f}}
}

func (p *podctl) printCheckups(f format, checkups []checkupView) error {
	switch f {
	case formatJSON, formatYAML:
		return printDocument(p.stdout, f, checkups)
	case formatName: // of what is wrong
		for _, checkup := range checkups {
			for _, finding := range checkup.Findings {
				if finding.Severity != doctor.OK {
					fmt.Fprintf(p.stdout, "%s/%s\n", checkup.Name, finding.Check)
				}
			}
		}
		return nil
	}
	colours := isTerminal(p.stdout) && os.Getenv("TERM") != "dumb" && os.Getenv("NO_COLOR") == ""
	return writeCheckups(p.stdout, checkups, colours)
}

// severityColours are the codes of ECMA-48, section 8.3.117.
var severityColours = map[doctor.Severity]string{doctor.OK: "32", doctor.Warning: "33", doctor.Error: "1;31"}

// writeCheckups writes each machine's findings, and what to do below what is not
// well, then how much of it there is.
func writeCheckups(w io.Writer, checkups []checkupView, colours bool) error {
	width := 0
	for _, checkup := range checkups {
		for _, f := range checkup.Findings {
			width = max(width, len(f.Check))
		}
	}
	var text strings.Builder
	count := map[doctor.Severity]int{}
	for i, checkup := range checkups {
		if i > 0 {
			text.WriteByte('\n')
		}
		fmt.Fprintf(&text, "%s\n", strings.TrimSpace(checkup.Kind+" "+checkup.Name))
		if len(checkup.Findings) == 0 {
			text.WriteString("  nothing to complain about\n")
		}
		for _, f := range checkup.Findings {
			count[f.Severity]++
			severity := fmt.Sprintf("%-7s", f.Severity)
			if colours {
				severity = "\x1b[" + severityColours[f.Severity] + "m" + severity + "\x1b[0m"
			}
			detail := strings.ReplaceAll(strings.TrimSpace(f.Detail), "\n", " ")
			fmt.Fprintf(&text, "  %s  %-*s  %s\n", severity, width, f.Check, detail)
			if f.Remedy != "" {
				fmt.Fprintf(&text, "  %7s  %*s  => %s\n", "", width, "", f.Remedy)
			}
		}
	}
	fmt.Fprintf(&text, "\n%s, %s\n", counted(count[doctor.Error], "error"), counted(count[doctor.Warning], "warning"))
	_, err := io.WriteString(w, text.String())
	return err
}

// counted writes a number of things.
func counted(n int, what string) string {
	switch n {
	case 0:
		return "no " + what + "s"
	case 1:
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
