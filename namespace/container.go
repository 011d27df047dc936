package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sync/errgroup"

	"podd/namespace/image"
	"podd/pod"
)

// Config is what a container is made from.
type Config struct {
	Spec  pod.Spec  `json:"spec"`
	Epoch pod.Epoch `json:"epoch"`
	// Label is the incarnation's, which no other one ever had: a pod that was
	// removed and made again has the same name and epoch. 0 in old records.
	Label pod.Label `json:"label,omitempty"`
	// NetNS is the path of the network namespace the pod is to be in.
	NetNS string `json:"netNS"`
	// Address is the pod's own, for its /etc/hosts; Nameserver and Search (the
	// zone) are for its /etc/resolv.conf. Only a new pod needs them: to
	// another host its files go with it.
	Address    netip.Addr `json:"address"`
	Nameserver netip.Addr `json:"nameserver"`
	Search     string     `json:"search"`
	// Restore prepares for a pod that comes from elsewhere: its writable files
	// will be put into Trees, its processes made by CRIU.
	Restore bool `json:"restore,omitempty"`
}

// Container is one incarnation of a pod on this host. Its methods may be called
// from any goroutine, but whoever makes, starts and destroys it must be one
// owner.
type Container struct {
	runtime *Runtime
	id      string
	paths   paths
	record  record

	mu sync.Mutex
	// hidden is what Mount is to hide of the host, for its image.
	hidden []hidden
	// pidfd refers to the init once it has been asked for and found alive.
	pidfd    *os.File
	sessions sessions
}

func (r *Runtime) container(id string) *Container {
	return &Container{runtime: r, id: id, paths: r.paths(id)}
}

// ID is NAME.EPOCH.
func (c *Container) ID() string { return c.id }

// Name is the pod's name.
func (c *Container) Name() string { return c.record.Config.Spec.Name }

// Epoch is the incarnation's number.
func (c *Container) Epoch() pod.Epoch { return c.record.Config.Epoch }

// Config is what the container was made from.
func (c *Container) Config() Config { return c.record.Config }

// Root is where the pod's root file system is mounted on the host.
func (c *Container) Root() string { return c.paths.rootfs }

// StopSignal is what the image says ends its main command politely; empty means
// SIGTERM.
func (c *Container) StopSignal() string { return c.record.Image.Config.StopSignal }

// Prepare makes everything of a container but its processes: files, mounts, and
// the record by which it is found again. With Config.Restore the root file
// system is left for Mount. If Prepare fails nothing is left. The error wraps
// pod.ErrExists if the incarnation is there already, pod.ErrInvalid or
// pod.ErrNotFound if what is asked for can't be had.
func (r *Runtime) Prepare(ctx context.Context, config Config) (_ *Container, err error) {
	if err := config.Spec.Validate(); err != nil {
		return nil, err
	}
	for _, v := range config.Spec.Volumes {
		if err := checkDestination(v.Destination); err != nil {
			return nil, err
		}
	}
	name := config.Spec.Image
	if config.Spec.ImageDigest != "" {
		name = config.Spec.ImageDigest
	}
	img, err := r.opts.Images.Resolve(name)
	if err != nil {
		return nil, err
	}
	c := r.container(ID(config.Spec.Name, config.Epoch))
	c.record = record{Config: config, Image: img, CreatedAt: time.Now()}
	if err := os.Mkdir(c.paths.state, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("container %s: %w", c.id, pod.ErrExists)
		}
		return nil, fmt.Errorf("making container %s: %w", c.id, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("making container %s: %w", c.id, err), c.Destroy(context.WithoutCancel(ctx)))
		}
	}()
	durable, err := c.writeRecord()
	if err != nil {
		return nil, err
	}
	var syncing errgroup.Group
	syncing.Go(durable)
	if err := errors.Join(c.prepare(), syncing.Wait()); err != nil {
		return nil, err
	}
	return c, ctx.Err()
}

// prepare makes all that processes need, the record being written.
func (c *Container) prepare() (err error) {
	if err := c.makeDirs(); err != nil {
		return err
	}
	if err := c.mountVolatile(); err != nil {
		return err
	}
	if c.record.Image.Name == image.HostName {
		if c.hidden, err = hostHidden(c.runtime.opts.StateDir, c.runtime.opts.RunDir); err != nil {
			return err
		}
	}
	if c.record.Config.Restore {
		if err := c.mountMasked(); err != nil {
			return err
		}
		return c.makeVolumes()
	}
	if err := c.Mount(); err != nil {
		return err
	}
	if err := c.writeFiles(); err != nil {
		return err
	}
	if err := c.makeVolumes(); err != nil {
		return err
	}
	return c.checkDestinations()
}

func (c *Container) makeDirs() error {
	for _, dir := range []string{c.paths.work, c.paths.volumes, c.paths.run, c.paths.rootfs, c.paths.volatile, c.paths.masked} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	// The upper's root is the pod's /.
	if err := os.Mkdir(c.paths.upper, 0o755); err != nil {
		return err
	}
	return os.Chmod(c.paths.upper, 0o755)
}

// Tree is a directory of the host whose content belongs to the pod and goes
// where it goes.
type Tree struct {
	// Name is the same on every host: "upper", "volatile" or "volume:" and the
	// destination in the pod.
	Name string
	// Path is where it is on this host.
	Path string
	// Policy is what becomes of the source after a move: VolumeMove or VolumeCopy.
	Policy pod.VolumePolicy
}

const (
	// UpperTree is the tree of what the pod has changed in its root file system.
	UpperTree = "upper"
	// VolatileTree is the tree of /dev, /tmp and /run.
	VolatileTree = "volatile"
)

// Trees lists what must be carried when the pod moves.
func (c *Container) Trees() []Tree {
	trees := []Tree{
		{UpperTree, c.paths.upper, pod.VolumeMove},
		{VolatileTree, c.paths.volatile, pod.VolumeMove},
	}
	for _, v := range c.record.Config.Spec.Volumes {
		if v.Policy == pod.VolumeMove || v.Policy == pod.VolumeCopy {
			trees = append(trees, Tree{"volume:" + v.Destination, c.volumeSource(v), v.Policy})
		}
	}
	return trees
}

// volumeSource is where a volume's content is on this host.
func (c *Container) volumeSource(v pod.Volume) string {
	if v.Named() {
		return filepath.Join(c.paths.volumes, v.Source)
	}
	return v.Source
}

// makeVolumes makes the directories of named volumes, and of carried ones whose
// content is still to come. Other sources must be there.
func (c *Container) makeVolumes() error {
	config := c.record.Config
	for _, v := range config.Spec.Volumes {
		source := c.volumeSource(v)
		carried := v.Policy == pod.VolumeMove || v.Policy == pod.VolumeCopy
		info, err := os.Stat(source)
		switch {
		case err == nil && carried && !info.IsDir():
			return fmt.Errorf("%w: volume %s: %s is a file, and policy %s carries only directories", pod.ErrInvalid, v.Destination, source, v.Policy)
		case err == nil:
			continue
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("volume %s: %w", v.Destination, err)
		case !v.Named() && !(carried && config.Restore):
			return fmt.Errorf("volume %s: source %s: %w on this host", v.Destination, source, pod.ErrNotFound)
		}
		if err := os.MkdirAll(source, 0o755); err != nil {
			return fmt.Errorf("volume %s: %w", v.Destination, err)
		}
		if !config.Restore {
			if err := c.ownVolume(v, source); err != nil {
				return fmt.Errorf("volume %s: %w", v.Destination, err)
			}
		}
	}
	return nil
}

// ownVolume gives a new named volume the owner and mode of the directory it
// hides in the image, or else to the pod's user, who is to use it.
func (c *Container) ownVolume(v pod.Volume, source string) error {
	uid, gid, mode := 0, 0, os.FileMode(0o755)
	under, err := c.lookup(v.Destination)
	switch {
	case err == nil:
		defer under.Close()
		st, err := fstat(under)
		if err != nil {
			return err
		}
		uid, gid, mode = int(st.Uid), int(st.Gid), os.FileMode(st.Mode&0o777)
	case errors.Is(err, fs.ErrNotExist):
		user, err := c.user(c.userName(""))
		if err != nil {
			return err
		}
		uid, gid = user.Uid, user.Gid
	default:
		return err
	}
	if err := os.Chown(source, uid, gid); err != nil {
		return err
	}
	return os.Chmod(source, mode)
}

// checkDestination refuses destinations that are podd's own.
func checkDestination(destination string) error {
	for _, own := range []string{initDir, "/proc", "/sys", "/dev"} {
		if destination == own || strings.HasPrefix(destination, own+"/") {
			return fmt.Errorf("%w: volume destination %s: %s is the system's", pod.ErrInvalid, destination, own)
		}
	}
	return nil
}

// checkDestinations refuses destinations that lead through a symbolic link of
// the image: a mount point's name must be the same in the specification, in the
// pod and in a checkpoint.
func (c *Container) checkDestinations() error {
	for _, v := range c.record.Config.Spec.Volumes {
		// The deepest part that exists decides; the rest will be made.
		for p := v.Destination; p != "/"; p = path.Dir(p) {
			f, err := c.lookup(p)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("volume destination %s: %w", v.Destination, err)
			}
			real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
			f.Close()
			if err != nil {
				return fmt.Errorf("volume destination %s: %w", v.Destination, err)
			}
			if in := strings.TrimPrefix(real, c.paths.rootfs); in != p {
				return fmt.Errorf("%w: volume destination %s: %s is a symbolic link in the image; use %s", pod.ErrInvalid,
					v.Destination, p, in+strings.TrimPrefix(v.Destination, p))
			}
			break
		}
	}
	return nil
}

// ExternalMounts maps the mount points of the pod that lie on file systems of
// the host to where they are on this host. CRIU must be told of them: at the
// dump each mount point, under any name, and at the restore what the name
// stands for. A mount point's own path serves as the name. There are more than
// any one pod has: which paths in /proc and /sys can be masked depends on the
// kernel.
func (c *Container) ExternalMounts() map[string]string {
	external := map[string]string{}
	for _, m := range c.binds() {
		external[m.Destination] = m.Source
	}
	if !cgroups.IsCgroup2UnifiedMode() {
		// A pod that comes from a host with version 2 has a mount there.
		external[cgroupRoot] = c.paths.masked
	}
	if c.record.Image.Name == image.HostName {
		for _, dir := range bound {
			external[dir] = dir
		}
	}
	for _, masked := range maskedFiles {
		external[masked] = filepath.Join(c.paths.volatile, "dev/null")
	}
	for _, masked := range maskedDirs {
		external[masked] = c.paths.masked
	}
	return external
}

// sortedVolumes returns volumes so that one inside another comes after it.
func sortedVolumes(volumes []pod.Volume) []pod.Volume {
	return slices.SortedFunc(slices.Values(volumes), func(a, b pod.Volume) int {
		return strings.Compare(a.Destination, b.Destination)
	})
}
