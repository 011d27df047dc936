package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Container is a container that is moved.
type Container struct {
	Name string
	Args []string
	Env  []string
	// User is both user and group.
	User uint32
	// Root is the root file system, which both hosts share.
	Root string
	// Writable is false for a root file system that is only read.
	Writable bool
	// Binds are directories of the machine, by the path they have inside.
	Binds map[string]string
	// Filter refuses the system calls that would lead to what CRIU can't dump:
	// user namespaces and io_uring. Every pod has such a filter, too.
	Filter bool
	// CRIU are lines of CRIU's configuration file, which runc hands to it.
	CRIU string
}

// ErrNotDumped means that the first step of a move has failed, and that what
// was to be moved goes on where it was.
var ErrNotDumped = errors.New("the checkpoint failed")

// Times is what a move took, step by step.
type Times struct {
	Checkpoint, Copy, Restore time.Duration
	// Bytes is the size of what was copied.
	Bytes int64
}

// Total is the time from the first step to the end of the last.
func (t Times) Total() time.Duration { return t.Checkpoint + t.Copy + t.Restore }

// Runc moves a container between the two hosts of a link with runc.
type Runc struct {
	Program   string
	Container Container
	Link      *Link
	// Dir is for bundles and state, Images for images: a tmpfs.
	Dir, Images string
	side        int
	pid         int
}

func (r *Runc) dir(side int, what string) string {
	return filepath.Join(r.Dir, r.Link.hosts[side]+"-"+r.Container.Name, what)
}

func (r *Runc) images(side int) string {
	return filepath.Join(r.Images, r.Link.hosts[side]+"-"+r.Container.Name)
}

func (r *Runc) command(side int, verb string, args ...string) []string {
	return append([]string{r.Program, "--root", r.dir(side, "state"), verb}, args...)
}

// Start runs the container on the first host.
func (r *Runc) Start(ctx context.Context) error {
	r.side = 0
	for side := range r.Link.hosts {
		if err := r.bundle(side); err != nil {
			return err
		}
	}
	if err := r.Link.Route(0); err != nil {
		return err
	}
	pid := r.dir(0, "pid")
	if err := run(ctx, r.command(0, "run", "--detach", "--pid-file", pid, "--bundle", r.dir(0, "bundle"), r.Container.Name)...); err != nil {
		return err
	}
	return r.notePID(pid)
}

func (r *Runc) notePID(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("looking for the container's process: %w", err)
	}
	if r.pid, err = strconv.Atoi(strings.TrimSpace(string(data))); err != nil {
		return fmt.Errorf("looking for the container's process: %w", err)
	}
	return nil
}

// bundle writes the container's configuration for a host.
func (r *Runc) bundle(side int) error {
	dir := r.dir(side, "bundle")
	if err := remake(dir); err != nil {
		return err
	}
	criu := filepath.Join(dir, "criu.conf")
	if err := os.WriteFile(criu, []byte(r.Container.CRIU), 0o600); err != nil {
		return fmt.Errorf("writing a bundle: %w", err)
	}
	spec := r.Container.spec(r.Link.Namespace(side))
	spec.Annotations = map[string]string{"org.criu.config": criu}
	data, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("writing a bundle: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o600); err != nil {
		return fmt.Errorf("writing a bundle: %w", err)
	}
	return nil
}

// spec is what `runc spec` writes, with the container's own.
func (c *Container) spec(namespace string) *specs.Spec {
	spec := specconv.Example()
	spec.Process.Terminal = false
	spec.Process.Args, spec.Process.Env = c.Args, append(spec.Process.Env, c.Env...)
	spec.Process.User = specs.User{UID: c.User, GID: c.User}
	spec.Root = &specs.Root{Path: c.Root, Readonly: !c.Writable}
	spec.Hostname = "bench"
	spec.Linux.CgroupsPath = "/podd-lab-bench-" + c.Name
	for i := range spec.Linux.Namespaces {
		if n := &spec.Linux.Namespaces[i]; n.Type == specs.NetworkNamespace {
			n.Path = namespace
		}
	}
	for inside, outside := range c.Binds {
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: inside, Source: outside, Type: "bind", Options: []string{"bind", "rw"}})
	}
	if c.Filter {
		spec.Linux.Seccomp = filter()
	}
	return spec
}

func filter() *specs.LinuxSeccomp {
	const newUser = 0x10000000 // CLONE_NEWUSER
	refused, absent := uint(1), uint(38)
	flag := []specs.LinuxSeccompArg{{Index: 0, Value: newUser, ValueTwo: newUser, Op: specs.OpMaskedEqual}}
	return &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"clone", "unshare"}, Action: specs.ActErrno, ErrnoRet: &refused, Args: flag},
			{Names: []string{"clone3", "io_uring_setup"}, Action: specs.ActErrno, ErrnoRet: &absent},
		},
	}
}

// Move moves the container to the other host. After an error other than
// ErrNotDumped it has to be stopped.
func (r *Runc) Move(ctx context.Context) (Times, error) {
	var t Times
	from, to := r.side, 1-r.side
	for side := range r.Link.hosts {
		if err := remake(r.images(side)); err != nil {
			return t, err
		}
	}
	begin := time.Now()
	err := run(ctx, r.command(from, "checkpoint", "--tcp-established", "--file-locks", "--link-remap", "--manage-cgroups-mode", "ignore",
		"--image-path", r.images(from), "--work-path", r.dir(from, "work"), r.Container.Name)...)
	if err != nil {
		return t, fmt.Errorf("%w: %w", ErrNotDumped, errorOf(err, filepath.Join(r.dir(from, "work"), "dump.log")))
	}
	dumped := time.Now()
	t.Checkpoint = dumped.Sub(begin)
	t.Bytes, err = carry(ctx, r.Link.lab, r.Link.hosts[from], r.Link.hosts[to], r.images(from), r.images(to))
	if err != nil {
		return t, err
	}
	copied := time.Now()
	t.Copy = copied.Sub(dumped)
	pid := r.dir(to, "pid")
	err = run(ctx, r.command(to, "restore", "--detach", "--tcp-established", "--file-locks", "--manage-cgroups-mode", "ignore", "--pid-file", pid,
		"--image-path", r.images(to), "--work-path", r.dir(to, "work"), "--bundle", r.dir(to, "bundle"), r.Container.Name)...)
	if err != nil {
		return t, errorOf(err, filepath.Join(r.dir(to, "work"), "restore.log"))
	}
	if err := r.Link.Route(to); err != nil {
		return t, err
	}
	t.Restore = time.Since(copied)
	r.side = to
	if err := reap(ctx, r.pid); err != nil {
		return t, err
	}
	return t, errors.Join(r.notePID(pid), os.RemoveAll(r.images(from)), os.RemoveAll(r.images(to)))
}

// Stop removes the container from both hosts.
func (r *Runc) Stop(ctx context.Context) error {
	var errs []error
	for side := range r.Link.hosts {
		if _, err := os.Stat(filepath.Join(r.dir(side, "state"), r.Container.Name)); err == nil {
			errs = append(errs, run(ctx, r.command(side, "delete", "--force", r.Container.Name)...))
		}
	}
	if r.pid > 0 {
		errs = append(errs, reap(ctx, r.pid))
		r.pid = 0
	}
	return errors.Join(errs...)
}
