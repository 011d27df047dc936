package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Recover mends what a CRIU that was killed in a dump leaves behind: TCP
// sockets in repair mode, on which the program would get errors. It switches
// repair mode off on every socket of every process in the pid namespace of
// pid (the pod's init, as this process sees it) and returns on how many it
// did so. The pod must still be frozen. Calling it when there is nothing to
// mend does nothing, so a daemon that finds a frozen pod after its own crash
// calls Recover, unblocks the network and thaws.
func Recover(pid int) (int, error) {
	pids, err := podProcesses(pid)
	if err != nil {
		return 0, fmt.Errorf("recovering sockets: %w", err)
	}
	n := 0
	var errs []error
	for _, p := range pids {
		mended, err := recoverProcess(p)
		n += mended
		if err != nil && !gone(err) {
			errs = append(errs, fmt.Errorf("recovering sockets of process %d: %w", p, err))
		}
	}
	return n, errors.Join(errs...)
}

// gone reports whether err means that a process ended meanwhile.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// podProcesses lists the processes in the pid namespace of pid and in those
// nested in it.
func podProcesses(pid int) ([]int, error) {
	depth, err := pidDepth(pid)
	if err != nil {
		return nil, err
	}
	root, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return nil, err
	}
	// A process is in the pod if it descends from init, or if it shares the
	// pid namespace: exec sessions may have a parent outside.
	all, err := processTable()
	if err != nil {
		return nil, err
	}
	in := map[int]bool{pid: true}
	for p := range all {
		if in[p] {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p)); err == nil && ns == root {
			in[p] = true
		}
	}
	var descends func(p int) bool
	descends = func(p int) bool {
		if in[p] {
			return true
		}
		parent, ok := all[p]
		if ok && parent > 1 && parent != p && descends(parent) {
			if d, err := pidDepth(p); err == nil && d >= depth {
				in[p] = true
				return true
			}
		}
		return false
	}
	var pids []int
	for p := range all {
		if descends(p) {
			pids = append(pids, p)
		}
	}
	return pids, nil
}

// processTable maps each process to its parent.
func processTable() (map[int]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	table := make(map[int]int)
	for _, e := range entries {
		p, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := readStat(p)
		if err != nil {
			continue // it ended meanwhile
		}
		table[p] = stat.parent
	}
	return table, nil
}

// procStat is the part of /proc/PID/stat that is used here (proc(5)).
type procStat struct {
	program string
	state   byte
	parent  int
}

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	return parseStat(string(b))
}

// parseStat knows that the program's name may contain anything, parentheses
// and spaces too.
func parseStat(s string) (procStat, error) {
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 0 || end < open {
		return procStat{}, fmt.Errorf("malformed stat %q", s)
	}
	fields := strings.Fields(s[end+1:])
	if len(fields) < 2 {
		return procStat{}, fmt.Errorf("malformed stat %q", s)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return procStat{}, fmt.Errorf("malformed stat %q", s)
	}
	return procStat{program: s[open+1 : end], state: fields[0][0], parent: parent}, nil
}

// pidDepth returns how many pid namespaces the process is seen in.
func pidDepth(pid int) (int, error) {
	pids, err := namespacePIDs(pid)
	return len(pids), err
}

// namespacePIDs returns the process's number in each pid namespace it is in,
// from ours to its own.
func namespacePIDs(pid int) ([]int, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		rest, ok := strings.CutPrefix(line, "NSpid:")
		if !ok {
			continue
		}
		var pids []int
		for _, field := range strings.Fields(rest) {
			n, err := strconv.Atoi(field)
			if err != nil {
				return nil, fmt.Errorf("process %d has malformed %q", pid, line)
			}
			pids = append(pids, n)
		}
		return pids, nil
	}
	return nil, fmt.Errorf("process %d has no NSpid in its status", pid)
}

func recoverProcess(pid int) (int, error) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, err
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(pidfd)
	n := 0
	for _, e := range entries {
		link, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || !strings.HasPrefix(link, "socket:") {
			continue
		}
		number, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		mended, err := recoverSocket(pidfd, number)
		if err != nil {
			return n, fmt.Errorf("descriptor %d: %w", number, err)
		}
		if mended {
			n++
		}
	}
	return n, nil
}

// recoverSocket switches repair mode off on one socket of a process, as
// libsoccr does at the end of a dump.
func recoverSocket(pidfd, number int) (bool, error) {
	fd, err := unix.PidfdGetfd(pidfd, number, 0)
	if err != nil {
		return false, err
	}
	defer unix.Close(fd)
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil || protocol != unix.IPPROTO_TCP {
		return false, err
	}
	repair, err := unix.GetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR)
	if err != nil || repair == 0 {
		return false, err
	}
	return true, unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_REPAIR, unix.TCP_REPAIR_OFF)
}
