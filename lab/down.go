package lab

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"podd/vnet/netns"
)

// downTimeout bounds Down's waiting for processes and cgroups to go.
const downTimeout = 60 * time.Second

// downPoll is the pause between two looks at what is still there.
const downPoll = 5 * time.Millisecond

// Down takes down whatever lab is up, whole or in part, and does nothing when
// none is. See (*Lab).Down.
func Down(ctx context.Context) error {
	l, err := Load()
	if err != nil {
		// What is noted was lost or never written; the rest goes by what is there.
		l = &Lab{config: config{Dir: place.dir}, log: slog.New(slog.DiscardHandler)}
	}
	return l.Down(ctx)
}

// Down ends every process of the lab (daemons, pods, whatever was started in a
// node), and removes its mounts, namespaces, cgroups and files. It can be
// called again, whatever became of the call before.
func (l *Lab) Down(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	if os.Geteuid() != 0 {
		return fmt.Errorf("taking down the lab: %w: it needs root; try sudo", fs.ErrPermission)
	}
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"ending its processes", l.killProcesses},
		{"unmounting", l.unmount},
		{"deleting its namespaces", func(context.Context) error { return l.deleteNamespaces() }},
		{"removing its cgroups", removeCgroups},
		{"removing its files", func(context.Context) error { return l.removeFiles() }},
	} {
		// In order: a file may be in use by a mount, and a mount by a process.
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("taking down the lab: %s: %w", step.what, err)
		}
	}
	l.children.Wait()
	l.log.Info("the lab is down")
	return nil
}

// killProcesses kills until nothing is left to kill: a process may start
// another one between the look and the kill.
func (l *Lab) killProcesses(ctx context.Context) error {
	namespaces, err := l.namespaceInodes()
	if err != nil {
		return err
	}
	if inode, err := networkNamespace("self"); err == nil && namespaces[inode] {
		return errors.New("this process is in a node of the lab; do it from outside")
	}
	for {
		found, err := l.findProcesses(namespaces)
		if err != nil || len(found) == 0 {
			return err
		}
		for _, p := range found {
			if err := p.signal(unix.SIGKILL); err != nil {
				return err
			}
		}
		// In a frozen cgroup of version 1 nothing dies.
		if err := thawCgroups(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes are left, %d the first: %w", len(found), found[0].PID, ctx.Err())
		case <-time.After(downPoll):
		}
	}
}

// unmount undoes every mount at or below the lab's directories, the newest
// first, until there is none: a thread of a daemon that was killed may have been
// mounting. It is lazy, as a mount may be busy with another one in a namespace
// that the kernel is still taking apart.
func (l *Lab) unmount(ctx context.Context) error {
	for {
		mounts, err := l.mounts()
		if err != nil || len(mounts) == 0 {
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s is still mounted: %w", mounts[0].point, ctx.Err())
		}
		for _, m := range slices.Backward(mounts) {
			if err := unix.Unmount(m.point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("%s: %w", m.point, err)
			}
		}
	}
}

func (l *Lab) deleteNamespaces() error {
	files, err := namespaceFiles()
	if err != nil {
		return err
	}
	for _, file := range files {
		if err := netns.Delete(file); err != nil {
			return err
		}
	}
	if !l.OwnNetnsDir {
		return nil
	}
	others, err := os.ReadDir(netnsDir)
	if len(others) > 0 || errors.Is(err, fs.ErrNotExist) {
		return nil // somebody else uses it now, or has removed it
	}
	if err == nil {
		err = unix.Unmount(netnsDir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	if err == nil || errors.Is(err, unix.EINVAL) {
		err = os.Remove(netnsDir)
	}
	if err != nil {
		return fmt.Errorf("removing %s: %w", netnsDir, err)
	}
	return nil
}

// removeFiles refuses while anything is mounted below a directory: its content
// would go too, and it may be anybody's.
func (l *Lab) removeFiles() error {
	mounts, err := l.mounts()
	if err != nil {
		return err
	}
	if len(mounts) > 0 {
		return fmt.Errorf("%s is still mounted", mounts[0].point)
	}
	// The run directory last: it says that there is something to take down.
	for _, dir := range []string{l.Dir, place.run} {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// Leftovers describes everything there is of any lab, one line each; none
// after Down. dirs are directories of labs other than DefaultDir.
func Leftovers(dirs ...string) ([]string, error) {
	var lines []string
	for _, dir := range append([]string{place.run, place.dir}, dirs...) {
		l := &Lab{config: config{Dir: dir}}
		namespaces, err := l.namespaceInodes()
		if err != nil {
			return nil, err
		}
		processes, err := l.findProcesses(namespaces)
		if err != nil {
			return nil, err
		}
		for _, p := range processes {
			lines = append(lines, fmt.Sprintf("process %d %s", p.PID, commandLine(p.PID)))
		}
		mounts, err := l.mounts()
		if err != nil {
			return nil, err
		}
		for _, m := range mounts {
			lines = append(lines, "mount "+m.point)
		}
		if _, err := os.Lstat(dir); err == nil {
			lines = append(lines, "directory "+dir)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("looking for leftovers: %w", err)
		}
	}
	files, err := namespaceFiles()
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		lines = append(lines, "namespace "+file)
	}
	groups, err := cgroupDirs()
	if err != nil {
		return nil, err
	}
	for _, dir := range groups {
		lines = append(lines, "cgroup "+dir)
	}
	slices.Sort(lines)
	return slices.Compact(lines), nil
}
