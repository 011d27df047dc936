// Command podd is the host daemon: it runs pods and moves them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"podd/namespace"
	"podd/pager"
	"podd/pagesync"
	"podd/podd"
	"podd/sharedmem"
	"podd/trust"
	"podd/version"
)

func main() {
	// libcontainer starts this same program as the first process of a pod.
	namespace.Init()
	// And podd starts it anew for each pod whose memory is still arriving.
	if len(os.Args) > 1 && os.Args[1] == "pager" {
		os.Exit(pager.Main(os.Args[2:]))
	}
	// And for each pod that comes here with shared memory.
	if len(os.Args) > 1 && os.Args[1] == sharedmem.Subcommand {
		os.Exit(sharedmem.Main())
	}
	// Comparing memory keeps all processors busy, and leaves one of these free for
	// everything that waits.
	runtime.GOMAXPROCS(pagesync.Processors(runtime.GOMAXPROCS(0)))

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := app().RunContext(ctx, os.Args); err != nil {
		fmt.Fprintf(os.Stderr, "podd: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func app() *cli.App {
	return &cli.App{
		Name:    "podd",
		Usage:   "run pods on this host and move them to others",
		Version: version.String(),
		Description: `podd must run as root. Pods live on when it stops; it finds them again
when it starts; "podd cleanup" removes what it leaves of itself in the kernel when
the host leaves for good. A machine belongs to a cluster before podd runs on it: podctl
cluster init makes one here, --join joins one that podctl cluster join-token has
made a token for.

Examples:
   podd --address 10.10.2.2 --join @token                     # the first time
   podd --address 10.10.2.2
   podd --config /etc/podd/podd.toml`,
		Flags:           flags(),
		HideHelpCommand: true,
		Action:          action(func(c *cli.Context, config podd.Config) error { return podd.Run(c.Context, config) }),
		Commands: []*cli.Command{{
			Name:   "cleanup",
			Usage:  "remove podd's devices, rules and mounts; give the flags it ran with",
			Flags:  flags(),
			Action: action(func(_ *cli.Context, config podd.Config) error { return podd.Cleanup(config) }),
		}},
	}
}

func action(run func(*cli.Context, podd.Config) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if c.Args().Present() {
			return fmt.Errorf("unexpected argument %q; see podd --help", c.Args().First())
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
	defaults := podd.DefaultConfig()
	return []cli.Flag{
		&cli.StringFlag{Name: "config", Usage: "read `FILE` (TOML); a flag wins over it", EnvVars: []string{"PODD_CONFIG"}},
		&cli.StringFlag{Name: "join", Usage: "join the cluster of this `TOKEN` if the host is in none yet; @FILE and - (standard input) keep it off the command line"},
		&cli.StringFlag{Name: "name", Usage: "the host's `NAME` in the cluster (default: the one it joined under, else the machine's)"},
		&cli.StringFlag{Name: "address", Usage: "the host's `ADDRESS` on its own subnet, as the proxy reaches it"},
		&cli.StringFlag{Name: "listen", Usage: fmt.Sprintf("serve the API at `ADDRESS:PORT` (default: port %d at --address)", podd.DefaultPort)},
		&cli.StringFlag{Name: "state-dir", Usage: "keep pods and images in `DIR`", Value: defaults.StateDir},
		&cli.StringFlag{Name: "run-dir", Usage: "put the socket and mounts in `DIR`", Value: defaults.RunDir},
		&cli.StringFlag{Name: "cgroup-parent", Usage: "put pods under the cgroup `PATH`", Value: defaults.CgroupParent},
		&cli.StringFlag{Name: "directory", Usage: "`URL,...` of an etcd cluster, or \"embedded\" to run one (default: what the cluster says)"},
		&cli.StringFlag{Name: "directory-ca", Usage: "the PEM `FILE` of the authority of an etcd cluster with its own"},
		&cli.StringFlag{Name: "directory-cert", Usage: "the PEM `FILE` of the certificate for that etcd cluster"},
		&cli.StringFlag{Name: "directory-key", Usage: "the PEM `FILE` of that certificate's key"},
		&cli.StringFlag{Name: "certificate-lifetime", Usage: "certificates that this host issues to daemons are good for `DURATION`", Value: defaults.CertificateLifetime},
		&cli.StringFlag{Name: "init-path", Usage: "the pods' init `PROGRAM` (default: podinit beside podd)"},
		&cli.StringFlag{Name: "page-filter", Usage: "the `LIBRARY` that leaves memory out of CRIU's dumps (default: podd-pagefilter.so beside podd)"},
		&cli.StringFlag{Name: "criu-path", Usage: "the criu `PROGRAM` (default: the one on PATH)"},
		&cli.IntFlag{Name: "max-moves", Usage: "carry out at most `N` moves out of and into this host at a time; others wait", Value: defaults.MaxMoves},
		&cli.StringFlag{Name: "log-level", Usage: "debug, info, warn or error", Value: defaults.LogLevel},
		&cli.StringFlag{Name: "log-format", Usage: "text or json", Value: defaults.LogFormat},
	}
}

// config is the defaults, under the file, under the flags. Flags may stand
// before a subcommand or after it.
func config(c *cli.Context) (podd.Config, error) {
	config := podd.DefaultConfig()
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
		if config, err = podd.LoadConfig(c.String("config")); err != nil {
			return config, err
		}
	}
	fields := map[string]*string{
		"name": &config.Name, "address": &config.Address, "listen": &config.Listen,
		"state-dir": &config.StateDir, "run-dir": &config.RunDir, "cgroup-parent": &config.CgroupParent,
		"directory": &config.Directory, "init-path": &config.InitPath, "page-filter": &config.PageFilter, "criu-path": &config.CRIUPath,
		"directory-ca": &config.DirectoryCA, "directory-cert": &config.DirectoryCert, "directory-key": &config.DirectoryKey,
		"certificate-lifetime": &config.CertificateLifetime, "join": &config.Join,
		"log-level": &config.LogLevel, "log-format": &config.LogFormat,
	}
	for _, c := range contexts {
		for name, field := range fields {
			if isSet(c, name) {
				*field = strings.Clone(c.String(name)) // the token's argument is overwritten
			}
		}
		if isSet(c, "max-moves") {
			config.MaxMoves = c.Int("max-moves")
		}
	}
	return config, nil
}
