package pagesync

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// identity is what a process is known by: pids are used again.
type identity struct {
	pid   int    // the host's view
	start uint64 // when it started, in clock ticks since boot
	inPod int    // its pid in the pod
}

// podProcesses finds the processes of the pod whose init is pid.
func podProcesses(init int) ([]identity, error) {
	outer, err := procfs.NamespacePIDs(init)
	if err != nil {
		return nil, fmt.Errorf("looking at the pod's init: %w", err)
	}
	stats, err := procfs.PodProcesses(init)
	if err != nil {
		return nil, err
	}
	found := make([]identity, 0, len(stats))
	for _, stat := range stats {
		pids, err := procfs.NamespacePIDs(stat.PID)
		if procfs.Gone(err) || err == nil && len(pids) < len(outer) {
			continue // its number is another process's by now
		}
		if err != nil {
			return nil, fmt.Errorf("looking at process %d: %w", stat.PID, err)
		}
		found = append(found, identity{stat.PID, stat.Start, pids[len(outer)-1]})
	}
	return found, nil
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
	stat, err := procfs.ReadStat(id.pid)
	if err == nil && stat.Start != id.start {
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
