//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"podd/lab"
	"podd/trust"
)

// diskSize is that of a memoryDisk: more than a pod of these tests can need.
const diskSize = "256m"

// memoryDisk puts a new file system over a directory until the test's end, one
// whose size can be changed at any time. Of what is in the directory it has a
// daemon's credentials. Nobody may be using the directory.
func memoryDisk(t *testing.T, dir, size string) {
	t.Helper()
	credentials, behind := trust.Dir(dir), filepath.Join(t.TempDir(), "credentials")
	_, err := os.Stat(credentials)
	member := err == nil
	copied := func(from, to string) {
		t.Helper()
		if !member {
			return
		}
		if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
			t.Fatalf("copying %s: %v\n%s", from, err, out)
		}
	}
	copied(credentials, behind)
	if err := unix.Mount("podd-e2e", dir, "tmpfs", 0, "mode=0700,size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	copied(behind, credentials)
}

// fillDisks leaves no space on the disks that the daemon of a node writes to,
// for its state and for images, nor on others given. Not one byte is written for
// it: the disks shrink to what is on them.
func fillDisks(t *testing.T, dirs ...string) (free func()) {
	t.Helper()
	freed := false
	free = func() {
		t.Helper()
		if freed {
			return
		}
		freed = true
		for _, dir := range dirs {
			if err := resize(dir, diskSize); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(free)
	for _, dir := range dirs {
		// Somebody may be writing: what was free is less by the time it is taken.
		until(t, dir+" is full", func() error {
			var fs unix.Statfs_t
			if err := unix.Statfs(dir, &fs); err != nil {
				return err
			}
			used := max(1, int64(fs.Blocks-fs.Bfree)) * fs.Bsize
			if err := resize(dir, fmt.Sprint(used)); err != nil {
				return err
			}
			if err := unix.Statfs(dir, &fs); err != nil || fs.Bfree > 1 {
				return errors.Join(err, fmt.Errorf("%d blocks are free", fs.Bfree))
			}
			return nil
		})
	}
	return free
}

// disksOf lists the disks of a node's daemon.
func disksOf(node string) []string {
	dirs := []string{theLab.StateDir(node)}
	if node != lab.Proxy {
		dirs = append(dirs, filepath.Join(theLab.RunDir(node), "checkpoint"))
	}
	return dirs
}

// resize gives a tmpfs another size and leaves its other options as they are.
func resize(dir, size string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("looking at %s: %w", dir, err)
	}
	if fs.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("%s is not a tmpfs of its own", dir)
	}
	const keep = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC // the same bits as ST_*
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT|uintptr(fs.Flags)&keep, "size="+size); err != nil {
		return fmt.Errorf("resizing %s to %s: %w", dir, size, err)
	}
	return nil
}
