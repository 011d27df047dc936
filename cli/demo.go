package cli

import (
	"fmt"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"podd/demo"
)

func (p *podctl) demoCommand() *command {
	return &command{
		name: "demo", category: "Trying it out",
		usage: "watch a desktop move between hosts while its user stays connected",
		description: `Makes a lab of three hosts, runs a desktop on the first, connects a viewer, and
moves the desktop from host to host while the viewer looks on. Says what happens
and how long it takes, and saves what the viewer shows before and after. It takes
less than a minute, needs root, and leaves nothing behind but the two pictures.`,
		examples: []string{"podctl demo", "podctl demo --pictures /tmp/demo"},
		notFound: "./dev demo installs and builds what is missing",
		flags: []cli.Flag{
			&cli.StringFlag{Name: "pictures", Value: demo.PictureDir, Usage: "save the screenshots in `DIR`"},
			&cli.StringFlag{Name: "bin-dir", Usage: "take podctl, podd, podproxy and podinit from `DIR`", DefaultText: "where podctl is"},
		},
		action: func(c *cli.Context) error {
			// A second signal must not end podctl: it is taking the lab down then.
			release := p.signals.take(func(number unix.Signal) { p.signals.cancel(signalError{number}) })
			defer release()
			err := demo.Run(c.Context, demo.Options{Out: p.stdout, BinDir: c.String("bin-dir"), PictureDir: c.String("pictures")})
			if err == nil {
				return nil
			}
			// Said here, because the exit code is podctl's whatever failed: no
			// command in a pod was asked for.
			p.printError(fmt.Errorf("demo: %w", err))
			return exitStatus(exitError)
		},
	}
}
