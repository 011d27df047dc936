package pager

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"podd/netconn"
)

// spareVariable tells a pager which processes' userfaultfds podd gives it, from
// descriptor firstSpare on: their numbers in the pod, with commas between.
const (
	spareVariable = "PODD_PAGER_SPARE"
	firstSpare    = 3
)

// spare are duplicates of the userfaultfds that were attached, by process. podd has
// them until the pod runs and the pager knows: till then nothing is lost with the
// pager and its keeper, and every process that is to be filled is among them.
// Afterwards they would be in the way, since only the last descriptor that is closed
// lets a program have zeros.
type spare map[int]*os.File

// keep adds a duplicate of a userfaultfd. One of the same process, from a restore
// that was given up, is closed.
func (s spare) keep(pid int, uffd *os.File) error {
	file, err := netconn.Duplicate(uffd)
	if err != nil {
		return fmt.Errorf("keeping a userfaultfd: %w", err)
	}
	if old := s[pid]; old != nil {
		old.Close()
	}
	s[pid] = file
	return nil
}

// handOver is what a pager needs to be given the descriptors: the environment that
// tells of them, and the files.
func (s spare) handOver() (variable string, files []*os.File) {
	var pids []string
	for _, pid := range slices.Sorted(maps.Keys(s)) {
		pids = append(pids, strconv.Itoa(pid))
		files = append(files, s[pid])
	}
	return spareVariable + "=" + strings.Join(pids, ","), files
}

func (s spare) close() {
	for pid, file := range s {
		file.Close()
		delete(s, pid)
	}
}

// inherited are the userfaultfds that this pager was started with, by process.
func inherited() (map[int]int, error) {
	value := os.Getenv(spareVariable)
	if value == "" {
		return nil, nil
	}
	fds := map[int]int{}
	for i, field := range strings.Split(value, ",") {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("reading %s: %w", spareVariable, err)
		}
		unix.CloseOnExec(firstSpare + i)
		fds[pid] = firstSpare + i
	}
	return fds, nil
}
