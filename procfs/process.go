// Package procfs reads what the kernel says in /proc of processes, and of memory
// as a whole. It reads the few fields that podd goes by, with few allocations, for
// some of it is read of every process while a pod stands still.
//
// Whatever is said of a process by its number may be said of another one by the
// next read: who has to be sure holds a pidfd, or compares start times.
package procfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Gone reports whether err means that a process ended meanwhile.
func Gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// Stat is the part of /proc/PID/stat (proc_pid_stat(5)) that is used here.
type Stat struct {
	PID int
	// Program is the name of the program, of which the kernel keeps 15 bytes.
	Program string
	// State is a letter, such as S for one that sleeps, or Z for a zombie.
	State byte
	// Parent is 0 if it is in no pid namespace that this process sees.
	Parent  int
	Session int
	// Start is when the process began, in clock ticks since boot. With the number it
	// names a process for good, until the machine is started again.
	Start uint64
}

// Ended reports whether the process has ended, though nobody may have reaped it.
func (s Stat) Ended() bool { return s.State == 'Z' || s.State == 'X' }

// ReadStat reads /proc/PID/stat. See Gone.
func ReadStat(pid int) (Stat, error) {
	var b [1024]byte // it has 52 numbers and a short name
	n, err := ReadSmall(fmt.Sprintf("/proc/%d/stat", pid), b[:])
	if err != nil {
		return Stat{}, err
	}
	return parseStat(string(b[:n]))
}

// parseStat knows that the program's name may hold anything, parentheses, spaces
// and line feeds too.
func parseStat(s string) (Stat, error) {
	malformed := func() (Stat, error) { return Stat{}, fmt.Errorf("malformed stat %q", s) }
	open, end := strings.IndexByte(s, '('), strings.LastIndexByte(s, ')')
	if open < 0 || end < open {
		return malformed()
	}
	stat := Stat{Program: s[open+1 : end]}
	var errs [4]error
	stat.PID, errs[0] = strconv.Atoi(strings.TrimSuffix(s[:open], " "))
	number := 3 // of the field, as in the manual
	for field := range strings.FieldsSeq(s[end+1:]) {
		switch number {
		case 3:
			stat.State = field[0]
		case 4:
			stat.Parent, errs[1] = strconv.Atoi(field)
		case 6:
			stat.Session, errs[2] = strconv.Atoi(field)
		case 22:
			stat.Start, errs[3] = strconv.ParseUint(field, 10, 64)
			if errors.Join(errs[:]...) != nil {
				return malformed()
			}
			return stat, nil
		}
		number++
	}
	return malformed()
}

// StatusField returns the value of a key of /proc/PID/status (proc_pid_status(5)),
// without white space around it. See Gone.
func StatusField(pid int, key string) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if name, value, _ := strings.Cut(line, ":"); name == key {
			return strings.TrimSpace(value), nil
		}
	}
	return "", fmt.Errorf("process %d has no %s in its status", pid, key)
}

// NamespacePIDs returns the process's number in each pid namespace that it is in,
// from ours to its own. See Gone.
func NamespacePIDs(pid int) ([]int, error) {
	value, err := StatusField(pid, "NSpid")
	if err != nil {
		return nil, err
	}
	var pids []int
	for field := range strings.FieldsSeq(value) {
		n, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("process %d has malformed NSpid %q", pid, value)
		}
		pids = append(pids, n)
	}
	return pids, nil
}

// PIDNamespace names the pid namespace of a process. See Gone.
func PIDNamespace(pid int) (string, error) {
	return os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
}
