package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"podd/procfs"
)

// cgroupRoot is where either version of the hierarchy is mounted.
const cgroupRoot = "/sys/fs/cgroup"

type mount struct {
	point string
	// netns is the inode of a mounted network namespace, else 0.
	netns uint64
}

// mounts lists what is mounted at or below the lab's directories, oldest first.
func (l *Lab) mounts() ([]mount, error) {
	infos, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !within(m.Mountpoint, place.run) && !within(m.Mountpoint, l.Dir), false
	})
	if err != nil {
		return nil, fmt.Errorf("listing mounts: %w", err)
	}
	var mounts []mount
	for _, m := range infos {
		mounts = append(mounts, mount{m.Mountpoint, namespaceInode(m.Root)})
	}
	return mounts, nil
}

func within(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// namespaceInode reads "net:[4026531840]", 0 for anything else.
func namespaceInode(s string) uint64 {
	s, ok := strings.CutPrefix(s, "net:[")
	if !ok {
		return 0
	}
	inode, err := strconv.ParseUint(strings.TrimSuffix(s, "]"), 10, 64)
	if err != nil {
		return 0
	}
	return inode
}

// namespaceInodes returns the network namespaces of the lab's nodes and pods.
func (l *Lab) namespaceInodes() (map[uint64]bool, error) {
	inodes := map[uint64]bool{}
	files, err := namespaceFiles()
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		var fs unix.Statfs_t
		var st unix.Stat_t
		if err := errors.Join(unix.Statfs(file, &fs), unix.Stat(file, &st)); err != nil {
			return nil, fmt.Errorf("looking at %s: %w", file, err)
		}
		if fs.Type == unix.NSFS_MAGIC { // else its making was interrupted
			inodes[st.Ino] = true
		}
	}
	mounts, err := l.mounts()
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		if m.netns != 0 {
			inodes[m.netns] = true
		}
	}
	return inodes, nil
}

// networkNamespace returns the inode of a process's network namespace.
func networkNamespace(pid string) (uint64, error) {
	link, err := os.Readlink("/proc/" + pid + "/ns/net")
	return namespaceInode(link), err
}

// findProcesses returns the processes that are in one of the namespaces or in
// a cgroup of a lab, and those noted as daemons, this one excepted.
func (l *Lab) findProcesses(namespaces map[uint64]bool) ([]process, error) {
	pids := map[int]bool{}
	running, err := procfs.PIDs()
	if err != nil {
		return nil, err
	}
	for _, pid := range running {
		// A process that has ended meanwhile has no namespace to read.
		if inode, err := networkNamespace(strconv.Itoa(pid)); err == nil && namespaces[inode] {
			pids[pid] = true
		}
	}
	if err := cgroupProcesses(pids); err != nil {
		return nil, err
	}
	var found []process
	for pid := range pids {
		if t, err := startTime(pid); err == nil && pid != os.Getpid() {
			found = append(found, process{pid, t})
		} else if err != nil && !errors.Is(err, errGone) {
			return nil, err
		}
	}
	notes, err := filepath.Glob(daemonPath("*"))
	if err != nil {
		return nil, fmt.Errorf("listing daemons: %w", err)
	}
	for _, note := range notes {
		p, err := l.daemon(strings.TrimSuffix(filepath.Base(note), ".pid"))
		if err == nil && p.alive() && !pids[p.PID] {
			found = append(found, p)
		}
	}
	return found, nil
}

// cgroupDirs lists the cgroups of labs, children before parents: in each
// hierarchy of version 1, or in the one of version 2.
func cgroupDirs() ([]string, error) {
	var dirs []string
	for _, pattern := range []string{place.prefix + "*", "*/" + place.prefix + "*"} {
		tops, err := filepath.Glob(filepath.Join(cgroupRoot, pattern))
		if err != nil {
			return nil, fmt.Errorf("listing cgroups: %w", err)
		}
		for _, top := range tops {
			err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				if err == nil && d.IsDir() {
					dirs = append(dirs, path)
				}
				return err
			})
			if err != nil {
				return nil, fmt.Errorf("listing cgroups: %w", err)
			}
		}
	}
	slices.Reverse(dirs)
	return dirs, nil
}

func cgroupProcesses(pids map[int]bool) error {
	dirs, err := cgroupDirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("listing the processes of a cgroup: %w", err)
		}
		for line := range strings.Lines(string(data)) {
			if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid != 0 {
				pids[pid] = true
			}
		}
	}
	return nil
}

func thawCgroups() error {
	dirs, err := cgroupDirs()
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		for file, value := range map[string]string{"freezer.state": "THAWED", "cgroup.freeze": "0"} {
			f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY, 0)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil {
				_, err = f.WriteString(value)
				err = errors.Join(err, f.Close())
			}
			if err != nil && !errors.Is(err, unix.ENODEV) {
				return fmt.Errorf("thawing a cgroup: %w", err)
			}
		}
	}
	return nil
}

// removeCgroups waits for cgroups to become empty: a process leaves them some
// time after it has ended.
func removeCgroups(ctx context.Context) error {
	for {
		dirs, err := cgroupDirs()
		if err != nil || len(dirs) == 0 {
			return err
		}
		for _, dir := range dirs {
			err := unix.Rmdir(dir)
			if err != nil && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("%s: %w", dir, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", dirs[0], ctx.Err())
		case <-time.After(downPoll):
		}
	}
}

// commandLine is for people to read.
func commandLine(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "?"
	}
	return string(bytes.ReplaceAll(bytes.TrimRight(data, "\x00"), []byte{0}, []byte{' '}))
}
