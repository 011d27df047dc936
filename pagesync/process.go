package pagesync

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// gone reports whether err means that a process ended meanwhile.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// identity is what a process is known by: pids are used again.
type identity struct {
	pid   int    // the host's view
	start uint64 // when it started, in clock ticks since boot
	inPod int    // its pid in the pod
}

// podProcesses finds the processes of the pod whose init is pid: those of its
// pid namespace, and their descendants in nested ones.
func podProcesses(init int) ([]identity, error) {
	depth, err := namespacePIDs(init)
	if err != nil {
		return nil, fmt.Errorf("looking at the pod's init: %w", err)
	}
	namespace, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", init))
	if err != nil {
		return nil, fmt.Errorf("looking at the pod's init: %w", err)
	}
	names, err := readNames("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	all := make(map[int]procStat)
	in := make(map[int]bool)
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		stat, err := readStat(pid)
		if gone(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("looking at process %d: %w", pid, err)
		}
		all[pid] = stat
		// Sessions that were brought in have a parent outside, so the
		// descendants of init are not all.
		ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
		in[pid] = err == nil && ns == namespace
	}
	var descends func(pid int) bool
	descends = func(pid int) bool {
		stat, ok := all[pid]
		if !ok || in[pid] {
			return in[pid]
		}
		// Pids that were used again meanwhile could make a ring.
		delete(all, pid)
		in[pid] = descends(stat.parent)
		all[pid] = stat
		return in[pid]
	}
	var found []identity
	for _, pid := range slices.Sorted(maps.Keys(all)) {
		if !descends(pid) {
			continue
		}
		stat := all[pid]
		pids, err := namespacePIDs(pid)
		if gone(err) || err == nil && len(pids) < len(depth) {
			continue // or its child left the pod
		}
		if err != nil {
			return nil, fmt.Errorf("looking at process %d: %w", pid, err)
		}
		found = append(found, identity{pid, stat.start, pids[len(depth)-1]})
	}
	return found, nil
}

// procStat is the part of /proc/PID/stat (proc_pid_stat(5)) that is used here.
type procStat struct {
	state  byte
	parent int
	start  uint64
}

func readStat(pid int) (procStat, error) {
	var b [1024]byte
	n, err := readSmall(fmt.Sprintf("/proc/%d/stat", pid), b[:])
	if err != nil {
		return procStat{}, err
	}
	return parseStat(string(b[:n]))
}

// parseStat knows that the program's name, in parentheses, may hold anything.
func parseStat(s string) (procStat, error) {
	fields := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	// What follows the name begins with field 3, the state.
	if len(fields) < 20 {
		return procStat{}, fmt.Errorf("malformed stat %q", s)
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return procStat{}, fmt.Errorf("malformed stat %q", s)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return procStat{}, fmt.Errorf("malformed stat %q", s)
	}
	return procStat{fields[0][0], parent, start}, nil
}

// namespacePIDs returns the process's pid in each pid namespace that it is in,
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
		for field := range strings.FieldsSeq(rest) {
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

// process is one process of the pod and what the target has of its memory.
type process struct {
	identity
	pidfd   int
	regions []span // what is carried, by the last survey or Freeze
	chunks  map[uint64]*chunk
	passes  int // that the process has seen from start to end

	// Once the pod is frozen; see frozenScanner.
	scannerMu sync.Mutex
	scanner   *scanner
}

// openProcess returns ESRCH if the process has ended, or its pid belongs to
// another one by now.
func openProcess(id identity) (*process, error) {
	fd, err := unix.PidfdOpen(id.pid, 0)
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	p := &process{identity: id, pidfd: fd, chunks: make(map[uint64]*chunk)}
	// The descriptor is of whoever has the pid now.
	stat, err := readStat(id.pid)
	if err == nil && stat.start != id.start {
		err = unix.ESRCH
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *process) close() {
	unix.Close(p.pidfd)
	if p.scanner != nil {
		p.scanner.close()
	}
}

// frozenScanner returns a scanner of the frozen process, for one goroutine; it
// stays open until close.
func (p *process) frozenScanner() (*scanner, error) {
	p.scannerMu.Lock()
	defer p.scannerMu.Unlock()
	if p.scanner == nil {
		var err error
		if p.scanner, err = newScanner(p.pid); err != nil {
			return nil, fmt.Errorf("opening the page map of frozen process %d: %w", p.pid, err)
		}
		if err := p.alive(); err != nil {
			return nil, fmt.Errorf("opening the page map of frozen process %d: %w", p.pid, err)
		}
	}
	return p.scanner.clone(), nil
}

// alive returns ESRCH once the process was reaped: what was read by its pid
// before is the process's own if it is alive afterwards.
func (p *process) alive() error {
	if err := unix.PidfdSendSignal(p.pidfd, 0, nil, 0); err != nil {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	return nil
}

// hasMemory returns ESRCH once the process has let go of its memory, as one that
// is killed does long before it is reaped. Its pagemap then shows no pages, as if
// all were zeros: what was seen there holds if the process has memory afterwards.
func (p *process) hasMemory() error {
	var b [1]byte
	local := [1]unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	// Nothing is mapped at address 0, but who has no memory at all is told first.
	_, err := unix.ProcessVMReadv(p.pid, local[:], []unix.RemoteIovec{{Base: 0, Len: len(b)}}, 0)
	if err != nil && err != unix.EFAULT {
		return os.NewSyscallError("process_vm_readv", err)
	}
	return p.alive()
}
