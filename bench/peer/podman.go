package peer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Podman moves a container between the two hosts of a link with podman:
// checkpoint --export, copy, restore --import.
type Podman struct {
	// Runtime is the path of runc: Debian's crun is built without CRIU.
	Runtime   string
	Container Container
	Link      *Link
	// Dir is for storage and state, Images for exported checkpoints: a tmpfs.
	Dir, Images string
	side        int
}

// image is what the root file system is called in the storage.
const image = "localhost/bench"

func (p *Podman) dir(side int, what string) string {
	return filepath.Join(p.Dir, p.Link.hosts[side]+"-"+p.Container.Name, what)
}

// command is podman as it would run on one of the hosts: with a storage and a
// state of its own.
func (p *Podman) command(side int, args ...string) []string {
	return append([]string{
		"podman", "--root", p.dir(side, "storage"), "--runroot", p.dir(side, "run"), "--tmpdir", p.dir(side, "tmp"),
		"--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", p.Runtime,
	}, args...)
}

// network is the path of the container's network namespace, which is the same
// on both hosts; it leads to that of the host where the container is.
func (p *Podman) network() string { return filepath.Join(p.Dir, p.Container.Name+".net") }

func (p *Podman) use(side int) error {
	next := p.network() + ".next"
	if err := os.RemoveAll(next); err != nil {
		return fmt.Errorf("choosing the network namespace: %w", err)
	}
	if err := os.Symlink(p.Link.Namespace(side), next); err != nil {
		return fmt.Errorf("choosing the network namespace: %w", err)
	}
	if err := os.Rename(next, p.network()); err != nil {
		return fmt.Errorf("choosing the network namespace: %w", err)
	}
	return nil
}

// PodmanLimits are options of podman run: the limits that it sets by itself are
// higher than some machines let root go.
var PodmanLimits = []string{"--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"}

// Start runs the container on the first host.
func (p *Podman) Start(ctx context.Context) error {
	p.side = 0
	if err := p.load(ctx); err != nil {
		return err
	}
	if err := errors.Join(p.use(0), p.Link.Route(0)); err != nil {
		return err
	}
	return run(ctx, p.command(0, append([]string{
		"run", "--detach", "--name", p.Container.Name, "--network", "ns:" + p.network(), "--cgroup-parent", "/podd-lab-bench-" + p.Container.Name,
		"--log-driver", "none",
	}, slices.Concat(PodmanLimits, []string{image}, p.Container.Args)...)...)...)
}

// load gives both hosts the same image of the root file system, if they have
// none.
func (p *Podman) load(ctx context.Context) error {
	for side := range p.Link.hosts {
		if err := os.MkdirAll(p.dir(side, "tmp"), 0o700); err != nil {
			return fmt.Errorf("making podman's directories: %w", err)
		}
	}
	if run(ctx, p.command(1, "image", "exists", image)...) == nil {
		return nil
	}
	root, saved := p.dir(0, "root.tar"), p.dir(0, "image.tar")
	for _, argv := range [][]string{
		{"tar", "-C", p.Container.Root, "-cf", root, "."},
		p.command(0, "import", root, image),
		// Only so it has the same identity there, which a restore asks for.
		p.command(0, "save", "--output", saved, image),
		p.command(1, "load", "--input", saved),
	} {
		if err := run(ctx, argv...); err != nil {
			return err
		}
	}
	return nil
}

// Move moves the container to the other host. After an error other than
// ErrNotDumped it has to be stopped.
func (p *Podman) Move(ctx context.Context) (t Times, err error) {
	from, to := p.side, 1-p.side
	var exported [2]string
	for side := range p.Link.hosts {
		dir := filepath.Join(p.Images, p.Link.hosts[side]+"-"+p.Container.Name)
		if err := remake(dir); err != nil {
			return t, err
		}
		exported[side] = filepath.Join(dir, "checkpoint.tar")
	}
	source, err := p.process(ctx, from)
	if err != nil {
		return t, err
	}
	begin := time.Now()
	if err := run(ctx, p.command(from, "container", "checkpoint", "--export", exported[from], "--compress", "none", "--tcp-established", "--file-locks", p.Container.Name)...); err != nil {
		return t, fmt.Errorf("%w: %w", ErrNotDumped, errorOf(err, p.log(ctx, from, "dump.log")))
	}
	dumped := time.Now()
	t.Checkpoint = dumped.Sub(begin)
	t.Bytes, err = carry(ctx, p.Link.lab, p.Link.hosts[from], p.Link.hosts[to], filepath.Dir(exported[from]), filepath.Dir(exported[to]))
	if err != nil {
		return t, err
	}
	copied := time.Now()
	t.Copy = copied.Sub(dumped)
	if err := p.use(to); err != nil {
		return t, err
	}
	if err := run(ctx, p.command(to, "container", "restore", "--import", exported[to], "--tcp-established", "--file-locks")...); err != nil {
		return t, errorOf(err, p.log(ctx, to, "restore.log"))
	}
	if err := p.Link.Route(to); err != nil {
		return t, err
	}
	t.Restore = time.Since(copied)
	p.side = to
	return t, errors.Join(
		reap(ctx, source),
		run(ctx, p.command(from, "rm", "--force", "--time", "0", p.Container.Name)...),
		os.RemoveAll(filepath.Dir(exported[0])), os.RemoveAll(filepath.Dir(exported[1])),
	)
}

// process is the number of the container's first process.
func (p *Podman) process(ctx context.Context, side int) (int, error) {
	text, err := output(ctx, p.command(side, "inspect", "--format", "{{.State.Pid}}", p.Container.Name)...)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(text))
	if err != nil {
		return 0, fmt.Errorf("looking for the container's process: %w", err)
	}
	return pid, nil
}

// log is where a log of CRIU is.
func (p *Podman) log(ctx context.Context, side int, name string) string {
	logs, err := filepath.Glob(filepath.Join(p.dir(side, "storage"), "overlay-containers", "*", "userdata", name))
	if err != nil || len(logs) == 0 {
		return name
	}
	return logs[len(logs)-1]
}

// Stop removes the container from both hosts.
func (p *Podman) Stop(ctx context.Context) error {
	var errs []error
	for side := range p.Link.hosts {
		if _, err := os.Stat(p.dir(side, "storage")); err == nil {
			errs = append(errs, run(ctx, p.command(side, "rm", "--force", "--ignore", "--time", "0", p.Container.Name)...))
		}
	}
	return errors.Join(errs...)
}
