package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"

	"podd/pod"
	"podd/trust"
)

// daemonKind is what podctl must know of a kind of daemon to make its machine
// the first of a cluster.
type daemonKind struct {
	program, stateDir string
	port              uint16 // of the API
}

var daemonKinds = map[trust.Kind]daemonKind{
	trust.KindProxy: {"podproxy", "/var/lib/podproxy", 7444},
	trust.KindHost:  {"podd", "/var/lib/podd", 7443},
}

func (p *podctl) clusterInitCommand() *command {
	return &command{
		name: "init", usage: "make a cluster, with this machine as its first member",
		description: `Makes the cluster's certificate authority, and the certificate of this machine's
daemon, in the daemon's state directory. It is done once, on the machine that
stays, which normally is the proxy's, as root and before the daemon is started.
No daemon is asked. What is printed is the authority's fingerprint.

Whoever reads authority-key.pem there can admit anybody: keep it, and a copy of
it, where only admins get at it.`,
		examples: []string{
			"podctl cluster init --address 10.10.0.2",
			"podctl cluster init --name front --address 10.10.0.2 --directory https://10.10.0.5:2379,https://10.10.0.6:2379",
			"podctl cluster init --kind host --address 10.10.1.2   # a site of one machine: podd has the directory",
		},
		flags: []cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "the daemon's `NAME` in the cluster", DefaultText: "the machine's"},
			&cli.StringSliceFlag{Name: "address", Usage: "an `ADDRESS` of this machine, as the other daemons reach it; may be repeated, the first is the one they are told"},
			&cli.StringFlag{Name: "kind", Value: string(trust.KindProxy), Usage: "the daemon that runs here: proxy or host"},
			&cli.StringFlag{Name: "state-dir", Usage: "the daemon's state directory, `DIR`", DefaultText: "/var/lib/podproxy or /var/lib/podd"},
			&cli.StringFlag{Name: "directory", Value: trust.Embedded, Usage: "`URL,...` of an etcd cluster, or \"embedded\" for the one in this daemon"},
		},
		action: p.clusterInit,
	}
}

func (p *podctl) clusterInit(c *cli.Context) error {
	kind, ok := daemonKinds[trust.Kind(c.String("kind"))]
	if !ok {
		return &usageError{p.current, fmt.Sprintf("unknown kind %q: want proxy or host", c.String("kind"))}
	}
	options, err := initOptions(c, kind)
	if err != nil {
		return fmt.Errorf("making a cluster: %w", err)
	}
	stateDir := kind.stateDir
	if c.IsSet("state-dir") {
		if stateDir, err = filepath.Abs(c.String("state-dir")); err != nil {
			return err
		}
	}
	store, err := trust.Init(trust.Dir(stateDir), options)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &hintedError{fmt.Errorf("making a cluster: %w", err), "run it as root, like " + kind.program}
	case err != nil:
		return fmt.Errorf("making a cluster: %w", err)
	}
	if _, err := fmt.Fprintln(p.stdout, store.Fingerprint()); err != nil {
		return err
	}
	start := kind.program + " --address " + c.StringSlice("address")[0]
	if c.IsSet("name") {
		start += " --name " + options.Identity.Name
	}
	if c.IsSet("state-dir") {
		start += " --state-dir " + stateDir
	}
	if c.IsSet("directory") {
		start += " --directory " + options.Info.Directory
	}
	fmt.Fprintf(p.stderr, `This machine is %s, the first member of a new cluster, and issues its certificates.
The authority's key is %s: keep a copy of it in a safe place.
Next:
  %s        # or set that in its configuration, and systemctl start %[3]s
  podctl cluster join-token                       # here, once for every host; there: podd --join @FILE
  podctl cluster user-token NAME --role ROLE      # here, for admins elsewhere; there: podctl context add site @FILE
`, store.Identity(), filepath.Join(trust.Dir(stateDir), "authority-key.pem"), start)
	return nil
}

// initOptions reads the flags of cluster init.
func initOptions(c *cli.Context, kind daemonKind) (o trust.InitOptions, err error) {
	o.Identity = trust.Identity{Kind: trust.Kind(c.String("kind")), Name: c.String("name")}
	if o.Identity.Name == "" {
		// As the daemon does.
		machine, err := os.Hostname()
		if err != nil {
			return o, fmt.Errorf("finding the machine's name: %w", err)
		}
		o.Identity.Name, _, _ = strings.Cut(strings.ToLower(machine), ".")
	}
	for _, text := range c.StringSlice("address") {
		a, err := netip.ParseAddr(text)
		if err != nil || !a.Is4() || a.IsUnspecified() {
			return o, fmt.Errorf("%w: address %q: want an IPv4 address of this machine", pod.ErrInvalid, text)
		}
		o.Addresses = append(o.Addresses, a)
		o.Info.Issuers = append(o.Info.Issuers, netip.AddrPortFrom(a, kind.port).String())
	}
	if len(o.Addresses) == 0 {
		return o, &hintedError{fmt.Errorf("%w: no address", pod.ErrInvalid), "--address says how other daemons reach this machine"}
	}
	o.Info.Directory = c.String("directory")
	for _, url := range strings.Split(o.Info.Directory, ",") {
		if o.Info.Directory != trust.Embedded && !strings.HasPrefix(url, "https://") {
			return o, fmt.Errorf("%w: directory %q: want %q or URLs such as https://10.0.0.5:2379", pod.ErrInvalid, url, trust.Embedded)
		}
	}
	return o, nil
}
