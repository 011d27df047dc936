package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runc/libcontainer/seccomp"

	"podd/namespace/image"
	"podd/pod"
)

// Images finds the layers of an image; image.Store is one.
type Images interface {
	Resolve(name string) (image.Image, error)
}

// Options say where a Runtime keeps things.
type Options struct {
	// StateDir survives a reboot, RunDir need not. Absolute paths.
	StateDir, RunDir string
	// CgroupParent is the cgroup the pods' cgroups are made in, as a path from
	// the root of the hierarchy; one per podd of the machine.
	CgroupParent string
	// InitPath is the program podinit on this host.
	InitPath string
	// Images resolves the names of images.
	Images Images
	// Log gets what is worth knowing but no error.
	Log *slog.Logger
	// LogSegment is the size of one segment of a pod's log in bytes, of which
	// four are kept for each stream; 0 means 16 MiB.
	LogSegment int64
}

// Runtime makes and finds the containers of one podd.
type Runtime struct {
	opts Options
}

// Open makes the directories of a runtime. It changes nothing else: containers
// that are there stay as they are.
func Open(opts Options) (*Runtime, error) {
	if !seccomp.Enabled {
		return nil, errors.New("this program was built without system call filters: build it with -tags seccomp")
	}
	for _, dir := range []*string{&opts.StateDir, &opts.RunDir} {
		if !filepath.IsAbs(*dir) {
			return nil, fmt.Errorf("%w: directory %q: want an absolute path", pod.ErrInvalid, *dir)
		}
		// The overlay's own options can't express these characters everywhere.
		if strings.ContainsAny(*dir, ":,\\") {
			return nil, fmt.Errorf("%w: directory %q: must not contain ':', ',' or '\\'", pod.ErrInvalid, *dir)
		}
	}
	opts.CgroupParent = filepath.Clean("/" + opts.CgroupParent)
	if opts.CgroupParent == "/" {
		return nil, fmt.Errorf("%w: no parent cgroup given", pod.ErrInvalid)
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	info, err := os.Stat(opts.InitPath)
	if err != nil {
		return nil, fmt.Errorf("looking for the pods' init: %w", err)
	}
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0 {
		return nil, fmt.Errorf("the pods' init %s is not an executable file", opts.InitPath)
	}
	for _, dir := range []string{
		filepath.Join(opts.StateDir, "pods"),
		filepath.Join(opts.RunDir, "containers"),
		filepath.Join(opts.RunDir, "libcontainer"),
	} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("making the runtime's directories: %w", err)
		}
	}
	// libcontainer refuses a root file system whose path has symbolic links,
	// and mountinfo shows none.
	for _, dir := range []*string{&opts.StateDir, &opts.RunDir} {
		real, err := filepath.EvalSymlinks(*dir)
		if err != nil {
			return nil, fmt.Errorf("making the runtime's directories: %w", err)
		}
		*dir = real
	}
	return &Runtime{opts: opts}, nil
}

// ID is the name of one incarnation's things on a host.
func ID(name string, epoch pod.Epoch) string {
	return name + "." + strconv.FormatUint(uint64(epoch), 10)
}

// ParseID is the inverse of ID.
func ParseID(id string) (name string, epoch pod.Epoch, ok bool) {
	name, number, _ := strings.Cut(id, ".")
	n, err := strconv.ParseUint(number, 10, 64)
	return name, pod.Epoch(n), err == nil && pod.ValidateName(name) == nil && ID(name, pod.Epoch(n)) == id
}

// paths are the places of one container. They follow from its ID.
type paths struct {
	state, record, upper, work, volumes string
	run, rootfs, volatile, masked       string
	libcontainer                        string
	cgroup                              string // from the root of the hierarchy
}

func (r *Runtime) paths(id string) paths {
	state := filepath.Join(r.opts.StateDir, "pods", id)
	run := filepath.Join(r.opts.RunDir, "containers", id)
	return paths{
		state:        state,
		record:       filepath.Join(state, "container.json"),
		upper:        filepath.Join(state, "upper"),
		work:         filepath.Join(state, "work"),
		volumes:      filepath.Join(state, "volumes"),
		run:          run,
		rootfs:       filepath.Join(run, "rootfs"),
		volatile:     filepath.Join(run, "volatile"),
		masked:       filepath.Join(run, "masked"),
		libcontainer: filepath.Join(r.opts.RunDir, "libcontainer", id),
		cgroup:       filepath.Join(r.opts.CgroupParent, id),
	}
}

// Load finds a container again, running or not. The error wraps
// pod.ErrNotFound if there is none, or only the remains of one.
func (r *Runtime) Load(name string, epoch pod.Epoch) (*Container, error) {
	c := r.container(ID(name, epoch))
	if err := c.readRecord(); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = pod.ErrNotFound
		}
		return nil, fmt.Errorf("container %s: %w", c.id, err)
	}
	return c, nil
}

// List finds every container whose record is whole, in order of ID.
func (r *Runtime) List() ([]*Container, error) {
	entries, err := os.ReadDir(filepath.Join(r.opts.StateDir, "pods"))
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	var list []*Container
	for _, entry := range entries {
		name, epoch, ok := ParseID(entry.Name())
		if !ok {
			continue
		}
		c, err := r.Load(name, epoch)
		if err != nil {
			r.opts.Log.Warn("ignoring what is left of a container", "pod", name, "epoch", epoch, "error", err)
			continue
		}
		list = append(list, c)
	}
	return list, nil
}

// Remains says what this host has of one incarnation.
type Remains struct {
	Name  string
	Epoch pod.Epoch
	// Live says that there is what only a running pod needs: mounts, a cgroup.
	Live bool
}

// Remains finds everything that any container has left, whole or in pieces, by
// its name alone.
func (r *Runtime) Remains() ([]Remains, error) {
	found := map[string]Remains{}
	look := func(live bool, dirs ...string) error {
		for _, dir := range dirs {
			entries, err := os.ReadDir(dir)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("looking for containers: %w", err)
			}
			for _, entry := range entries {
				if name, epoch, ok := ParseID(entry.Name()); ok && entry.IsDir() {
					id := entry.Name()
					found[id] = Remains{Name: name, Epoch: epoch, Live: live || found[id].Live}
				}
			}
		}
		return nil
	}
	err := errors.Join(
		look(false, filepath.Join(r.opts.StateDir, "pods")),
		look(true, filepath.Join(r.opts.RunDir, "containers"), filepath.Join(r.opts.RunDir, "libcontainer")),
		look(true, cgroupDirs(r.opts.CgroupParent)...),
	)
	if err != nil {
		return nil, err
	}
	return slices.Collect(maps.Values(found)), nil
}

// Remove destroys one incarnation, whole or in pieces, as a crash or a lost
// race may have left it: processes are killed, files deleted. It does nothing
// when there is none.
func (r *Runtime) Remove(ctx context.Context, name string, epoch pod.Epoch) error {
	c := r.container(ID(name, epoch))
	if err := c.readRecord(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		r.opts.Log.Warn("a container's record is damaged; removing what follows from its name", "container", c.id, "error", err)
	}
	return c.Destroy(ctx)
}

// RemoveCgroupParent removes the parent cgroup of a runtime that is not used any
// more. It fails if there is a container.
func (r *Runtime) RemoveCgroupParent() error {
	for _, dir := range cgroupDirs(r.opts.CgroupParent) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing the parent cgroup: %w", err)
		}
	}
	return nil
}

// mergeEnv merges lists of NAME=VALUE; a later one wins.
func mergeEnv(lists ...[]string) []string {
	var merged []string
	for _, kv := range slices.Concat(lists...) {
		name, _, _ := strings.Cut(kv, "=")
		i := slices.IndexFunc(merged, func(have string) bool { return strings.HasPrefix(have, name+"=") })
		if i >= 0 {
			merged[i] = kv
		} else {
			merged = append(merged, kv)
		}
	}
	return merged
}
