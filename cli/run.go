package cli

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"strings"

	"connectrpc.com/connect"
	"github.com/urfave/cli/v2"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

func (p *podctl) runCommand() *command {
	return &command{
		name: "run", category: "Pods", args: "[--] [COMMAND [ARG...]]", max: unlimited, inner: 1,
		usage: "make a pod and run a command in it",
		description: `Makes a pod and starts COMMAND in it; without COMMAND the image's own. podctl
stays connected to it until it ends, even while the pod moves, and exits with
its exit code. -d leaves it in the background and prints the pod's name.

Exit codes: the command's own; 125 podctl or podd failed, 126 the command
can't be executed, 127 it isn't found.

Images: "host" is this machine's own userland, read-only below a private
writable layer; "dir:/path" is a directory; any other name is one that
"podctl image import" gave.

Volumes: -v SOURCE:DESTINATION[:POLICY[,ro]]. SOURCE is a path on the host or a
name, which stands for a directory that podd keeps. POLICY says what a move
does: move (the default for names) carries the content along, copy leaves the
original, share (the default for paths) expects the same content on every host,
rebind uses whatever the target has there.

On a terminal the keys ctrl-p ctrl-q leave the command running and podctl ends.`,
		examples: []string{
			"podctl run -d --name web -- python3 -m http.server 80",
			"podctl run -it --rm -- bash",
			"podctl run --host b --memory 512m --cpus 1.5 --user nobody -- make -j2",
			"podctl run -d --name db -v data:/var/lib/db:move --image dir:/srv/db -- /usr/bin/db",
		},
		completes: []completer{completeCommands, completeFiles},
		notFound:  "podctl host ls lists the hosts, podctl image ls the images",
		flags: append([]cli.Flag{
			&cli.StringFlag{Name: "name", Usage: "the pod's `NAME`, also its name in DNS (default: made from the command)"},
			&cli.StringFlag{Name: "host", Usage: "run on `HOST` (default: the podd that is asked)"},
			&cli.StringFlag{Name: "image", Value: "host", Usage: "`IMAGE` to run: host, dir:/path or an imported one"},
			&cli.StringSliceFlag{Name: "volume", Aliases: []string{"v"}, Usage: "let the pod see a directory: `SRC:DST[:POLICY]`"},
			&cli.StringFlag{Name: "memory", Aliases: []string{"m"}, Usage: "limit memory to `SIZE`, such as 512m or 2g"},
			&cli.StringFlag{Name: "cpus", Usage: "limit processor time to `NUMBER` processors, such as 1.5"},
			&cli.StringFlag{Name: "pids", Usage: "limit processes and threads to `NUMBER`", DefaultText: fmt.Sprint(pod.DefaultPIDs)},
			&cli.BoolFlag{Name: "no-new-privs", Usage: "set-user-ID programs gain nothing in the pod"},
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "print the pod's name and leave it running"},
			&cli.BoolFlag{Name: "rm", Usage: "remove the pod when the command ends"},
			&cli.BoolFlag{Name: "sig-proxy", Value: true, Usage: "without a terminal, pass signals on to the command"},
			detachKeysFlag(),
		}, processFlags()...),
		action: p.run,
	}
}

// processFlags are the flags that run and exec share.
func processFlags() []cli.Flag {
	return []cli.Flag{
		&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "connect standard input"},
		&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the command a terminal"},
		&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "set `NAME=VALUE`, or pass NAME on"},
		&cli.StringSliceFlag{Name: "env-file", Usage: "set what the lines of `FILE` say, like -e"},
		&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "run as `USER[:GROUP]` of the pod's own accounts, names or numbers"},
		&cli.StringFlag{Name: "workdir", Aliases: []string{"w"}, Usage: "start in the directory `DIR` of the pod"},
	}
}

func detachKeysFlag() cli.Flag {
	return &cli.StringFlag{Name: "detach-keys", Value: defaultDetachKeys, Usage: "`KEYS` that end podctl and leave the command running; empty for none"}
}

func (p *podctl) run(c *cli.Context) error {
	spec, err := p.spec(c)
	if err != nil {
		return err
	}
	keys, err := parseDetachKeys(c.String("detach-keys"))
	if err != nil {
		return err
	}
	client, err := p.client()
	if err != nil {
		return err
	}
	if err := client.create(c.Context, &spec, c.String("host"), c.IsSet("name")); err != nil {
		return fmt.Errorf("running %s: %w", spec.Name, err)
	}
	if c.Bool("detach") {
		fmt.Fprintln(p.stdout, spec.Name)
		return nil
	}
	// From the first byte on: a quick command may have ended by now.
	s := p.attachSession(client, spec.Name, &poddv1.OutputPosition{})
	s.tty, s.input, s.detachKeys, s.proxySignals = spec.TTY, spec.Stdin, keys, c.Bool("sig-proxy")
	p.warnNoTerminal(spec.TTY && spec.Stdin)
	return p.sessionResult(s, "attaching to "+spec.Name)(s.run(c.Context))
}

// warnNoTerminal says that a terminal was asked for and podctl has none.
func (p *podctl) warnNoTerminal(wanted bool) {
	if wanted && !isTerminal(p.stdin) {
		fmt.Fprintln(p.stderr, "podctl: warning: standard input is no terminal; its bytes are passed on as they are")
	}
}

// spec reads the flags and checks all that needs no host.
func (p *podctl) spec(c *cli.Context) (pod.Spec, error) {
	spec := pod.Spec{
		Name: c.String("name"), Image: c.String("image"), Command: c.Args().Slice(),
		User: c.String("user"), WorkDir: c.String("workdir"),
		TTY: c.Bool("tty"), Stdin: c.Bool("interactive"),
		NoNewPrivileges: c.Bool("no-new-privs"), RemoveOnExit: c.Bool("rm"),
	}
	var err error
	if !c.IsSet("name") {
		spec.Name = generateName(spec)
	}
	if spec.Env, err = environment(c.StringSlice("env-file"), c.StringSlice("env")); err != nil {
		return spec, err
	}
	for _, text := range c.StringSlice("volume") {
		volume, err := pod.ParseVolume(text)
		if err != nil {
			return spec, err
		}
		spec.Volumes = append(spec.Volumes, volume)
	}
	if spec.MemoryBytes, err = parseMemory(c.String("memory")); err != nil {
		return spec, err
	}
	if spec.MilliCPUs, err = parseCPUs(c.String("cpus")); err != nil {
		return spec, err
	}
	if spec.PIDs, err = parsePIDs(c.String("pids")); err != nil {
		return spec, err
	}
	return spec, spec.Validate()
}

// create makes the pod. A generated name that is taken is replaced by another.
func (c *client) create(ctx context.Context, spec *pod.Spec, host string, named bool) error {
	const tries = 5
	for try := 1; ; try++ {
		request := connect.NewRequest(&poddv1.CreatePodRequest{Spec: api.SpecToProto(*spec), Host: host})
		_, err := c.pods.CreatePod(ctx, request)
		if !errors.Is(err, pod.ErrExists) || named || try == tries {
			if errors.Is(err, pod.ErrExists) {
				err = &hintedError{err, fmt.Sprintf("podctl inspect %s shows it; podctl rm %[1]s makes the name free", spec.Name)}
			}
			return err
		}
		spec.Name = generateName(*spec)
	}
}

// generateName makes a name of the program's, or the image's, and four random
// hexadecimal digits.
func generateName(spec pod.Spec) string {
	base := path.Base(strings.TrimPrefix(spec.Image, "dir:"))
	if len(spec.Command) > 0 {
		base = path.Base(spec.Command[0])
	}
	base, _, _ = strings.Cut(base, ":")
	const longest = 32
	base = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, base)
	base = strings.Trim(base[:min(len(base), longest)], "-")
	if base == "" {
		base = "pod"
	}
	var random [2]byte
	_, _ = rand.Read(random[:]) // never fails (crypto/rand)
	return base + "-" + hex.EncodeToString(random[:])
}
