// Command podd is the host daemon: it runs pods and moves them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"podd/namespace"
	"podd/podd"
	"podd/version"
)

func main() {
	// libcontainer starts this same program as the first process of a pod.
	namespace.Init()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := app().RunContext(ctx, os.Args); err != nil {
		fmt.Fprintf(os.Stderr, "podd: %v\n", err)
		stop()
		os.Exit(1)
	}
}

func app() *cli.App {
	defaults := podd.DefaultConfig()
	return &cli.App{
		Name:    "podd",
		Usage:   "run pods on this host and move them to others",
		Version: version.String(),
		Description: `podd must run as root. Pods live on when it stops; it finds them again
when it starts.

Examples:
   podd --name a --address 10.10.1.2                          # a site of one machine
   podd --name b --address 10.10.2.2 --directory http://10.10.0.2:2379
   podd --config /etc/podd/podd.toml`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "config", Usage: "read `FILE` (TOML); a flag wins over it", EnvVars: []string{"PODD_CONFIG"}},
			&cli.StringFlag{Name: "name", Usage: "the host's `NAME` in the cluster (default: the machine's)"},
			&cli.StringFlag{Name: "address", Usage: "the host's `ADDRESS` on its own subnet, as the proxy reaches it"},
			&cli.StringFlag{Name: "listen", Usage: fmt.Sprintf("serve the API at `ADDRESS:PORT` (default: port %d at --address)", podd.DefaultPort)},
			&cli.StringFlag{Name: "state-dir", Usage: "keep pods and images in `DIR`", Value: defaults.StateDir},
			&cli.StringFlag{Name: "run-dir", Usage: "put the socket and mounts in `DIR`", Value: defaults.RunDir},
			&cli.StringFlag{Name: "cgroup-parent", Usage: "put pods under the cgroup `PATH`", Value: defaults.CgroupParent},
			&cli.StringFlag{Name: "directory", Usage: "`URL,...` of an etcd cluster, or \"embedded\" to run one", Value: defaults.Directory},
			&cli.StringFlag{Name: "init-path", Usage: "the pods' init `PROGRAM` (default: podinit beside podd)"},
			&cli.StringFlag{Name: "criu-path", Usage: "the criu `PROGRAM` (default: the one on PATH)"},
			&cli.IntFlag{Name: "max-moves", Usage: "carry out at most `N` moves out of and into this host at a time; others wait", Value: defaults.MaxMoves},
			&cli.StringFlag{Name: "log-level", Usage: "debug, info, warn or error", Value: defaults.LogLevel},
			&cli.StringFlag{Name: "log-format", Usage: "text or json", Value: defaults.LogFormat},
		},
		HideHelpCommand: true,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return fmt.Errorf("unexpected argument %q; see podd --help", c.Args().First())
			}
			config, err := config(c)
			if err != nil {
				return err
			}
			return podd.Run(c.Context, config)
		},
	}
}

// config is the defaults, under the file, under the flags.
func config(c *cli.Context) (podd.Config, error) {
	config := podd.DefaultConfig()
	if path := c.String("config"); path != "" {
		var err error
		if config, err = podd.LoadConfig(path); err != nil {
			return config, err
		}
	}
	for name, field := range map[string]*string{
		"name": &config.Name, "address": &config.Address, "listen": &config.Listen,
		"state-dir": &config.StateDir, "run-dir": &config.RunDir, "cgroup-parent": &config.CgroupParent,
		"directory": &config.Directory, "init-path": &config.InitPath, "criu-path": &config.CRIUPath,
		"log-level": &config.LogLevel, "log-format": &config.LogFormat,
	} {
		if c.IsSet(name) {
			*field = c.String(name)
		}
	}
	if c.IsSet("max-moves") {
		config.MaxMoves = c.Int("max-moves")
	}
	return config, nil
}
