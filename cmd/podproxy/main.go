// Command podproxy is the session proxy: it keeps pods reachable at the same
// address and name wherever they run.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"podd/proxy"
	"podd/trust"
	"podd/version"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := app().RunContext(ctx, os.Args); err != nil {
		fmt.Fprintf(os.Stderr, "podproxy: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func app() *cli.App {
	return &cli.App{
		Name:    "podproxy",
		Usage:   "keep pods reachable wherever they run",
		Version: version.String(),
		Description: `podproxy must run as root. Connections through it go on while it is stopped;
"podproxy cleanup" ends them and removes its devices, routes and rules. A machine
belongs to a cluster before podproxy runs on it: podctl cluster init makes one
here, --join joins one that podctl cluster join-token has made a token for.

Examples:
   podproxy --address 10.10.0.2                               # after podctl cluster init
   podproxy --address 10.10.0.2 --join @token --dns-upstream 9.9.9.9
   podproxy --config /etc/podd/podproxy.toml`,
		Flags:           flags(),
		HideHelpCommand: true,
		Action:          action(func(c *cli.Context, config proxy.Config) error { return proxy.Run(c.Context, config) }),
		Commands: []*cli.Command{{
			Name:   "cleanup",
			Usage:  "remove podproxy's devices, routes and rules; give the flags it ran with",
			Flags:  flags(),
			Action: action(func(_ *cli.Context, config proxy.Config) error { return proxy.Cleanup(config) }),
		}},
	}
}

func action(run func(*cli.Context, proxy.Config) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.Args().Present() {
			return fmt.Errorf("unexpected argument %q; see podproxy --help", c.Args().First())
		}
		config, err := config(c)
		for _, context := range c.Lineage() {
			trust.HideArgument(context.String("join"))
		}
		if err != nil {
			return err
		}
		return run(c, config)
	}
}

func flags() []cli.Flag {
	d := proxy.DefaultConfig()
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "read `FILE` (TOML); a flag wins over it", EnvVars: []string{"PODPROXY_CONFIG"}},
		&cli.StringFlag{Name: "join", Usage: "join the cluster of this `TOKEN` if the proxy is in none yet; @FILE and - (standard input) keep it off the command line"},
		&cli.StringFlag{Name: "name", Usage: "the proxy's `NAME` in the cluster (default: the one it joined under, else the machine's)"},
		&cli.StringFlag{Name: "address", Usage: "the proxy's `ADDRESS` on its own subnet, as hosts reach it"},
		&cli.StringFlag{Name: "listen", Usage: fmt.Sprintf("serve the API, /metrics and /healthz at `ADDRESS:PORT` (default: port %d at --address)", proxy.DefaultPort)},
		&cli.StringFlag{Name: "state-dir", Usage: "keep credentials, the audit and an embedded directory in `DIR`", Value: d.StateDir},
		&cli.StringFlag{Name: "run-dir", Usage: "put the socket and the lock in `DIR`", Value: d.RunDir},
		&cli.StringFlag{Name: "directory", Usage: "`URL,...` of an etcd cluster, or \"embedded\" to run one (default: what the cluster says)"},
		&cli.StringFlag{Name: "directory-ca", Usage: "the PEM `FILE` of the authority of an etcd cluster with its own"},
		&cli.StringFlag{Name: "directory-cert", Usage: "the PEM `FILE` of the certificate for that etcd cluster"},
		&cli.StringFlag{Name: "directory-key", Usage: "the PEM `FILE` of that certificate's key"},
		&cli.StringFlag{Name: "certificate-lifetime", Usage: "certificates that this proxy issues to daemons are good for `DURATION`", Value: d.CertificateLifetime},
		&cli.StringFlag{Name: "public-prefix", Usage: "clients reach pods at addresses of `PREFIX`", Value: d.PublicPrefix},
		&cli.StringFlag{Name: "virtual-prefix", Usage: "pods see themselves at addresses of `PREFIX`, of the same length", Value: d.VirtualPrefix},
		&cli.StringFlag{Name: "zone", Usage: "the DNS `ZONE` of the pods' names", Value: d.Zone},
		&cli.StringFlag{Name: "dns-listen", Usage: "answer clients' DNS queries at `ADDRESS:PORT` (default: port 53 at --address)"},
		&cli.StringSliceFlag{Name: "dns-upstream", Usage: "ask the name server at `ADDRESS[:PORT]` for the names that are not ours, for pods; may be repeated"},
		&cli.StringFlag{Name: "hold-limit", Usage: "queue a moving pod's packets for `DURATION` at most; 0s lets them get lost", Value: d.HoldLimit},
		&cli.StringFlag{Name: "log-level", Usage: "debug, info, warn or error", Value: d.LogLevel},
		&cli.StringFlag{Name: "log-format", Usage: "text or json", Value: d.LogFormat},
	}
}

// config is the defaults, under the file, under the flags. Flags may stand
// before a subcommand or after it.
func config(c *cli.Context) (proxy.Config, error) {
	config := proxy.DefaultConfig()
	contexts := c.Lineage()
	slices.Reverse(contexts)
	isSet := func(c *cli.Context, name string) bool {
		return c.Command != nil && slices.Contains(c.LocalFlagNames(), name)
	}
	for _, c := range contexts {
		if !isSet(c, "config") {
			continue
		}
		var err error
		if config, err = proxy.LoadConfig(c.String("config")); err != nil {
			return config, err
		}
	}
	fields := map[string]*string{
		"name": &config.Name, "address": &config.Address, "listen": &config.Listen,
		"state-dir": &config.StateDir, "run-dir": &config.RunDir, "directory": &config.Directory,
		"public-prefix": &config.PublicPrefix, "virtual-prefix": &config.VirtualPrefix, "zone": &config.Zone,
		"directory-ca": &config.DirectoryCA, "directory-cert": &config.DirectoryCert, "directory-key": &config.DirectoryKey,
		"certificate-lifetime": &config.CertificateLifetime, "hold-limit": &config.HoldLimit, "join": &config.Join,
		"dns-listen": &config.DNSListen, "log-level": &config.LogLevel, "log-format": &config.LogFormat,
	}
	for _, c := range contexts {
		for name, field := range fields {
			if isSet(c, name) {
				*field = strings.Clone(c.String(name)) // the token's argument is overwritten
			}
		}
		if isSet(c, "dns-upstream") {
			config.DNSUpstream = c.StringSlice("dns-upstream")
		}
	}
	return config, nil
}
