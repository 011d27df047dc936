package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// hostRoot is a root file system for containers of peers like that of a pod of
// the image "host": the machine's own, below a writable layer, with directories
// on a tmpfs of the machine in place of /tmp and /run. (A tmpfs of the
// container's own would be packed by CRIU while the container is frozen.)
type hostRoot struct {
	dir string
}

// root is where it is mounted.
func (r hostRoot) root() string { return filepath.Join(r.dir, "merged") }

// binds are the directories that are bound into it.
func (r hostRoot) binds() map[string]string {
	return map[string]string{"/tmp": filepath.Join(r.dir, "volatile", "tmp"), "/run": filepath.Join(r.dir, "volatile", "run")}
}

// mountHostRoot makes a root file system, with nothing in its writable layer.
// index and nfs_export are what CRIU needs for inotify watches.
func mountHostRoot(dir string) (hostRoot, error) {
	r := hostRoot{dir}
	if err := r.unmount(); err != nil {
		return r, err
	}
	for _, sub := range []string{"upper", "work", "merged", "volatile"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return r, fmt.Errorf("making a root file system: %w", err)
		}
	}
	options := fmt.Sprintf("lowerdir=/,upperdir=%s,workdir=%s,index=on,nfs_export=on", filepath.Join(dir, "upper"), filepath.Join(dir, "work"))
	if err := unix.Mount("overlay", r.root(), "overlay", unix.MS_NODEV, options); err != nil {
		return r, fmt.Errorf("mounting a root file system (%s): %w", options, err)
	}
	if err := unix.Mount("volatile", filepath.Join(dir, "volatile"), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return r, fmt.Errorf("mounting a tmpfs: %w", err)
	}
	for inside, outside := range r.binds() {
		if err := os.Mkdir(outside, 0o755); err != nil {
			return r, fmt.Errorf("making a root file system: %w", err)
		}
		if inside == "/tmp" {
			if err := os.Chmod(outside, 0o777|os.ModeSticky); err != nil {
				return r, fmt.Errorf("making a root file system: %w", err)
			}
		}
	}
	return r, nil
}

// unmount removes it, also when it is half made or was never.
func (r hostRoot) unmount() error {
	if r.dir == "" {
		return nil
	}
	for _, mount := range []string{filepath.Join(r.dir, "volatile"), r.root()} {
		if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmounting %s: %w", mount, err)
		}
	}
	if err := os.RemoveAll(r.dir); err != nil {
		return fmt.Errorf("removing a root file system: %w", err)
	}
	return nil
}
