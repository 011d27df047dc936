package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"podd/namespace/image"
)

// Mount mounts the root file system. Prepare does it for a new pod; for one
// that comes from elsewhere it must follow the last change to Trees, because
// nobody but overlay itself may write to an upper layer that is mounted. Doing
// it twice is an error.
func (c *Container) Mount() error {
	if err := c.Cover(); err != nil {
		return err
	}
	return c.MountCovered()
}

// Cover puts into the upper layer what hides the host's private files from the pod, where the image is
// the host itself. It can be done again.
func (c *Container) Cover() error {
	if c.record.Image.Name != image.HostName {
		return nil
	}
	if err := c.hideHost(); err != nil {
		return fmt.Errorf("hiding the host's private files: %w", err)
	}
	return nil
}

// MountCovered is Mount for an upper layer in which nothing has been changed, nor could have been, since
// Cover.
func (c *Container) MountCovered() error {
	return mountOverlay(c.Layers(), c.paths.upper, c.paths.work, c.paths.rootfs)
}

// mountOverlay stacks lower, topmost first. index and nfs_export give files
// stable handles, which CRIU needs for inotify watches and for open files that
// were deleted. Devices work only in /dev, which is not on the overlay. Marks in
// the upper layer that would show other files of the lower one are not followed,
// for it may come from elsewhere: the host's image is the host itself.
func mountOverlay(lower []string, upper, work, target string) error {
	options := func(lower []string) string {
		return fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,index=on,nfs_export=on,redirect_dir=nofollow,metacopy=off", strings.Join(lower, ":"), upper, work)
	}
	data := options(lower)
	if len(data) >= os.Getpagesize() {
		// mount(2) takes one page of options. Descriptors have short names.
		var short []string
		for _, dir := range lower {
			f, err := openDir(dir)
			if err != nil {
				return fmt.Errorf("opening a layer: %w", err)
			}
			defer f.Close()
			short = append(short, fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
		}
		data = options(short)
	}
	if err := unix.Mount("overlay", target, "overlay", unix.MS_NODEV, data); err != nil {
		return fmt.Errorf("mounting the root file system at %s (%s): %w", target, data, err)
	}
	return nil
}

// mountVolatile mounts the tmpfs for what a reboot would empty, and lays it out.
// What the pod's processes write there counts as their memory (the kernel
// charges a page to who first touches it); the size bounds what podd itself
// writes when it receives a pod.
func (c *Container) mountVolatile() error {
	size := "50%"
	if limit := c.record.Config.Spec.MemoryBytes; limit > 0 {
		size = fmt.Sprint(limit)
	}
	if err := unix.Mount("tmpfs", c.paths.volatile, "tmpfs", unix.MS_NOSUID, "mode=0755,size="+size); err != nil {
		return fmt.Errorf("mounting the volatile files at %s: %w", c.paths.volatile, err)
	}
	return makeVolatile(c.paths.volatile)
}

// mountMasked mounts what CRIU binds over directories that are not to be seen,
// like what libcontainer makes for a new pod: empty and never writable.
func (c *Container) mountMasked() error {
	if err := unix.Mount("tmpfs", c.paths.masked, "tmpfs", unix.MS_RDONLY|noAccess|unix.MS_NOEXEC, "size=4k,nr_inodes=1"); err != nil {
		return fmt.Errorf("mounting an empty directory at %s: %w", c.paths.masked, err)
	}
	return nil
}

// volatileDirs are the directories on the tmpfs, with their permission bits.
var volatileDirs = []struct {
	name string
	mode uint32
}{
	{"dev", 0o755}, {"dev/pts", 0o755}, {"dev/mqueue", 0o1777}, {"dev/shm", 0o1777},
	{"tmp", 0o1777}, {"run", 0o755}, {"run/lock", 0o1777},
}

// The devices every container has (OCI runtime specification, "Default
// Devices"), by name.
var deviceNodes = map[string]struct{ major, minor uint32 }{
	"null": {1, 3}, "zero": {1, 5}, "full": {1, 7}, "random": {1, 8}, "urandom": {1, 9}, "tty": {5, 0},
}

var deviceLinks = map[string]string{
	"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1",
	"stderr": "/proc/self/fd/2", "core": "/proc/kcore",
}

func makeVolatile(root string) error {
	for _, d := range volatileDirs {
		path := filepath.Join(root, d.name)
		if err := os.Mkdir(path, 0o755); err != nil {
			return err
		}
		if err := unix.Chmod(path, d.mode); err != nil { // os.Chmod has its own idea of the sticky bit
			return &os.PathError{Op: "chmod", Path: path, Err: err}
		}
	}
	for name, dev := range deviceNodes {
		path := filepath.Join(root, "dev", name)
		err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(dev.major, dev.minor)))
		if err == nil {
			err = unix.Chmod(path, 0o666)
		}
		if err != nil {
			return &os.PathError{Op: "mknod", Path: path, Err: err}
		}
	}
	for name, target := range deviceLinks {
		if err := os.Symlink(target, filepath.Join(root, "dev", name)); err != nil {
			return err
		}
	}
	return nil
}

// unmount takes every mount off path, however often one was put there. Files
// that podd itself still reads keep the file system alive but not visible.
func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT): // no mount point
			return nil
		default:
			return fmt.Errorf("unmounting %s: %w", path, err)
		}
	}
}
