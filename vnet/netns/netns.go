// Package netns makes persistent network namespaces and runs code inside them.
// A namespace is known by the path of a file it is bind-mounted on, so it
// outlives every process, podd's own included.
//
// A network namespace is an attribute of a thread. Do therefore runs its
// function on a thread that is locked for the while, and that is thrown away
// rather than returned to the scheduler if it can't be brought back.
package netns

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// current is the calling thread's own network namespace.
const current = "/proc/thread-self/ns/net"

// ErrNotNamespace means the file exists but no network namespace is mounted
// on it: its creation was interrupted, or the machine was restarted.
var ErrNotNamespace = errors.New("no network namespace is mounted on the file")

// Open returns a descriptor of the namespace at path. The error wraps
// fs.ErrNotExist when there is no such file and ErrNotNamespace when the file
// is no namespace.
func Open(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening network namespace: %w", err)
	}
	var stat unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &stat); err != nil {
		f.Close()
		return nil, fmt.Errorf("opening network namespace %s: statfs: %w", path, err)
	}
	if stat.Type != unix.NSFS_MAGIC {
		f.Close()
		return nil, fmt.Errorf("opening network namespace %s: %w", path, ErrNotNamespace)
	}
	return f, nil
}

// Create makes a network namespace, runs setup in it and then mounts it on
// path. It does nothing when path already is a namespace. setup may be nil;
// because it runs before the mount, a namespace that exists is a complete one.
func Create(path string, setup func() error) error {
	existing, err := Open(path)
	switch {
	case err == nil:
		return existing.Close()
	case errors.Is(err, ErrNotNamespace), errors.Is(err, fs.ErrNotExist):
	default:
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("creating network namespace: %w", err)
	}
	mountPoint, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY|unix.O_CLOEXEC, 0o400)
	if err != nil {
		return fmt.Errorf("creating network namespace: %w", err)
	}
	mountPoint.Close()

	err = onThread(func() error { return unix.Unshare(unix.CLONE_NEWNET) }, func() error {
		if setup != nil {
			if err := setup(); err != nil {
				return err
			}
		}
		if err := unix.Mount(current, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mounting it: %w", err)
		}
		return nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("creating network namespace %s: %w", path, err), Delete(path))
	}
	return nil
}

// Delete unmounts the namespace at path and removes the file. It does nothing
// when there is none. The namespace itself goes when the last process, socket
// and device in it are gone, which may be seconds later.
func Delete(path string) error {
	for {
		// EINVAL: not a mount point. The loop is for a path that was mounted
		// on more than once.
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			break
		}
		if err != nil {
			return fmt.Errorf("deleting network namespace %s: unmounting: %w", path, err)
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("deleting network namespace: %w", err)
	}
	return nil
}

// Do runs fn on a thread that is in the namespace at path. Sockets fn opens,
// files of /proc/sys/net it uses and processes it starts belong to that
// namespace; goroutines it starts do not. It costs about 60 us.
func Do(path string, fn func() error) error {
	ns, err := Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	return DoIn(ns, fn)
}

// DoIn is Do for a namespace that is already open.
func DoIn(ns *os.File, fn func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering network namespace %s: %w", ns.Name(), err)
		}
		return nil
	}, fn)
}

// onThread runs enter and then fn on a locked thread of their own.
func onThread(enter, fn func() error) error {
	// A goroutine that ends while locked takes its thread with it.
	done := make(chan error, 1)
	go func() {
		err := errors.New("the function ended its goroutine")
		defer func() { done <- err }()
		runtime.LockOSThread()
		origin, openErr := os.OpenFile(current, os.O_RDONLY|unix.O_CLOEXEC, 0)
		if openErr != nil {
			runtime.UnlockOSThread()
			err = fmt.Errorf("opening the thread's network namespace: %w", openErr)
			return
		}
		// Deferred, so that a panic or runtime.Goexit in fn restores too.
		defer func() {
			if unix.Setns(int(origin.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			origin.Close()
		}()
		if enterErr := enter(); enterErr != nil {
			err = enterErr
			return
		}
		err = fn()
	}()
	return <-done
}
