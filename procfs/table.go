package procfs

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// PIDs lists the processes that this one sees.
func PIDs() ([]int, error) {
	names, err := ReadNames("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// CgroupProcesses lists the processes of a cgroup, by its directory; 0 is one that is in
// no pid namespace that this process sees.
func CgroupProcesses(dir string) ([]int, error) {
	list, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("listing the processes of a cgroup: %w", err)
	}
	var pids []int
	for field := range strings.FieldsSeq(string(list)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("listing the processes of cgroup %s: %w", dir, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// Table returns what ReadStat says of each process that this one sees.
func Table() (map[int]Stat, error) {
	pids, err := PIDs()
	if err != nil {
		return nil, err
	}
	table := make(map[int]Stat, len(pids))
	for _, pid := range pids {
		stat, err := ReadStat(pid)
		if Gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("looking at process %d: %w", pid, err)
		}
		table[pid] = stat
	}
	return table, nil
}

// PodProcesses finds the processes of the pod whose init is given, in ascending
// order: those of its pid namespace, and their descendants in nested ones.
func PodProcesses(init int) ([]Stat, error) {
	outer, err := NamespacePIDs(init)
	if err != nil {
		return nil, fmt.Errorf("looking at the pod's init: %w", err)
	}
	namespace, err := PIDNamespace(init)
	if err != nil {
		return nil, fmt.Errorf("looking at the pod's init: %w", err)
	}
	table, err := Table()
	if err != nil {
		return nil, err
	}
	// Sessions that were brought in have a parent outside, so the descendants of
	// init are not all.
	shares := make(map[int]bool)
	for pid := range table {
		ns, err := PIDNamespace(pid)
		shares[pid] = err == nil && ns == namespace
	}
	var found []Stat
	for _, pid := range slices.Sorted(maps.Keys(table)) {
		if !shares[pid] {
			if !descends(pid, table, shares) {
				continue
			}
			pids, err := NamespacePIDs(pid)
			if Gone(err) || err == nil && len(pids) < len(outer) {
				continue // or its child left the pod
			}
			if err != nil {
				return nil, fmt.Errorf("looking at process %d: %w", pid, err)
			}
		}
		found = append(found, table[pid])
	}
	return found, nil
}

// descends reports whether an ancestor of a process is one of some.
func descends(pid int, table map[int]Stat, from map[int]bool) bool {
	// Numbers that were given again meanwhile could make a ring.
	for range len(table) {
		stat, ok := table[pid]
		if !ok {
			return false
		}
		if pid = stat.Parent; from[pid] {
			return true
		}
	}
	return false
}
