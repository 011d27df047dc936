package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

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
