package pager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// process names a process for good: a number is given again, with another start
// time.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks after boot
}

// findProcess looks a process up. The error wraps os.ErrProcessDone if it is gone.
func findProcess(pid int) (process, error) {
	stat, err := procfs.ReadStat(pid)
	switch {
	case procfs.Gone(err), err == nil && stat.Ended():
		return process{}, fmt.Errorf("process %d has ended: %w", pid, os.ErrProcessDone)
	case err != nil:
		return process{}, fmt.Errorf("looking for process %d: %w", pid, err)
	}
	return process{pid, stat.Start}, nil
}

// arguments is how a pager is started. Its keeper has them too.
func arguments(dir string) []string { return []string{"podd", "pager", dir} }

// findProcesses finds the pagers of a directory, which lead sessions, and their
// keepers, which don't; this process is in neither. What a pod runs under that name
// is in another pid namespace.
func findProcesses(dir string) (pagers, keepers []process, err error) {
	want := strings.Join(arguments(dir), "\x00") + "\x00"
	pids, err := procfs.PIDs()
	if err != nil {
		return nil, nil, fmt.Errorf("looking for pagers: %w", err)
	}
	namespace, err := procfs.PIDNamespace(os.Getpid())
	if err != nil {
		return nil, nil, fmt.Errorf("looking for pagers: %w", err)
	}
	for _, pid := range pids {
		if pid == os.Getpid() {
			continue
		}
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil || string(cmdline) != want {
			continue // it ended, or is another program
		}
		if n, err := procfs.PIDNamespace(pid); err == nil && n != namespace {
			continue
		}
		stat, err := procfs.ReadStat(pid)
		switch p := (process{pid, stat.Start}); {
		case procfs.Gone(err), err == nil && stat.Ended():
		case err != nil:
			return nil, nil, fmt.Errorf("looking for pagers: %w", err)
		case stat.Session == pid:
			pagers = append(pagers, p)
		default:
			keepers = append(keepers, p)
		}
	}
	return pagers, keepers, nil
}

// killPagers kills the pagers of a directory but this one, until there is none.
func killPagers(dir string) error {
	for {
		pagers, _, err := findProcesses(dir)
		if err != nil || len(pagers) == 0 {
			return err
		}
		for _, p := range pagers {
			if err := p.kill(); err != nil {
				return err
			}
		}
	}
}

// killKeepers kills the keepers of a directory, but for one.
func killKeepers(dir string, but process) error {
	_, keepers, err := findProcesses(dir)
	for _, p := range keepers {
		if p != but {
			err = errors.Join(err, p.kill())
		}
	}
	return err
}

// open returns a pidfd. The error wraps os.ErrProcessDone if the process is gone.
func (p process) open() (int, error) {
	if p.PID == 0 {
		return -1, os.ErrProcessDone
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err == nil {
		now, e := findProcess(p.PID)
		if e == nil && now == p {
			return fd, nil
		}
		unix.Close(fd)
		err = unix.ESRCH
	}
	if errors.Is(err, unix.ESRCH) {
		return -1, fmt.Errorf("process %d: %w", p.PID, os.ErrProcessDone)
	}
	return -1, fmt.Errorf("opening process %d: %w", p.PID, err)
}

// gone reports whether a process is known to have ended.
func (p process) gone() bool {
	fd, err := p.open()
	if err == nil {
		unix.Close(fd)
	}
	return errors.Is(err, os.ErrProcessDone)
}

// kill kills a process and waits until it is dead; one that is gone is fine.
func (p process) kill() error {
	fd, err := p.open()
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && err != unix.ESRCH {
		return fmt.Errorf("killing process %d: %w", p.PID, err)
	}
	if err := procfs.WaitExit(context.Background(), fd); err != nil {
		return fmt.Errorf("waiting for process %d: %w", p.PID, err)
	}
	// If it is a child of this process it is to be reaped; else that fails.
	unix.Wait4(p.PID, nil, unix.WNOHANG, nil)
	return nil
}

// startKeeper makes a process that shares this one's table of descriptors, and
// nothing else, and sleeps until it is killed. All descriptors stay open as long
// as one of the two lives: pidfd_getfd(2) takes them out.
func startKeeper() (process, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	// A signal would run Go's handler, which needs what the copy does not have.
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		return process{}, fmt.Errorf("starting the keeper: %w", err)
	}
	pid, errno := cloneSleeping()
	err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	if errno != 0 {
		return process{}, fmt.Errorf("starting the keeper: %w", errno)
	}
	if err != nil {
		return process{}, fmt.Errorf("starting the keeper: %w", err)
	}
	return findProcess(int(pid))
}

var keeperName = [...]byte{'p', 'a', 'g', 'e', 'r', '-', 'k', 'e', 'e', 'p', 'e', 'r', 0}

// cloneSleeping is startKeeper's clone(2). The copy has one thread and no Go
// runtime to speak of: it makes system calls only, as the copies of syscall's
// forkAndExecInChild do.
//
//go:norace
//go:nosplit
func cloneSleeping() (uintptr, syscall.Errno) {
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_FILES|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 || pid != 0 {
		return pid, errno
	}
	syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&keeperName)), 0, 0, 0, 0)
	for {
		syscall.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
	}
}

// takeDescriptor duplicates a descriptor of the process behind a pidfd.
func takeDescriptor(pidfd, fd int) (int, error) {
	mine, _, errno := unix.Syscall(unix.SYS_PIDFD_GETFD, uintptr(pidfd), uintptr(fd), 0)
	if errno != 0 {
		return -1, fmt.Errorf("taking descriptor %d from the keeper: %w", fd, errno)
	}
	return int(mine), nil
}
