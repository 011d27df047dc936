package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// Strays finds the CRIUs that work in the network namespaces at some paths and
// that this process did not start: an earlier one did, and died. They undo what
// they have begun and end by themselves, because their conversation has ended.
// Until then nobody can say what they leave: one that rolls back a dump freezes
// the pod at its end, for it was frozen when CRIU came.
//
// The result maps a path to process IDs; where there are none it has no entry,
// and neither has a path where there is no namespace.
func Strays(netNS ...string) (map[string][]int, error) {
	type inode struct{ dev, ino uint64 }
	paths := map[inode]string{}
	for _, path := range netNS {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); err == nil {
			paths[inode{st.Dev, st.Ino}] = path
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("looking for CRIU in %s: %w", path, err)
		}
	}
	if len(paths) == 0 {
		return nil, nil
	}
	table, err := procfs.Table()
	if err != nil {
		return nil, fmt.Errorf("looking for CRIU: %w", err)
	}
	strays := map[string][]int{}
	for pid, stat := range table {
		if stat.Parent == os.Getpid() {
			continue
		}
		found, err := isCRIU(pid)
		if err != nil && !procfs.Gone(err) {
			return nil, fmt.Errorf("looking for CRIU: process %d: %w", pid, err)
		}
		var st unix.Stat_t
		if err != nil || !found || unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &st) != nil {
			continue // another program, or it has ended
		}
		if path, ok := paths[inode{st.Dev, st.Ino}]; ok {
			strays[path] = append(strays[path], pid)
		}
	}
	return strays, nil
}

// KillStray ends one of Strays that does not end by itself. If it was dumping,
// the pod must be frozen and then be given to Recover. It does nothing when
// the process is no CRIU any more.
func KillStray(pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("killing CRIU %d: %w", pid, err)
	}
	defer unix.Close(fd)
	// Looked at after opening: if it is CRIU now, it was then.
	if is, err := isCRIU(pid); !is {
		if err != nil && !procfs.Gone(err) {
			return fmt.Errorf("killing CRIU %d: %w", pid, err)
		}
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("killing CRIU %d: %w", pid, err)
	}
	return nil
}

// isCRIU tells a CRIU from a program of a pod that calls itself so: CRIU is in
// our own pid namespace.
func isCRIU(pid int) (bool, error) {
	stat, err := procfs.ReadStat(pid)
	if err != nil || stat.Program != "criu" || stat.Ended() {
		return false, err
	}
	own, err := procfs.PIDNamespace(os.Getpid())
	if err != nil {
		return false, err
	}
	its, err := procfs.PIDNamespace(pid)
	return its == own, err
}
