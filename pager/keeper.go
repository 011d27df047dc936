package pager

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// process names a process for good: a number is given again, with another start
// time.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks after boot
}

// findProcess looks up the start time of a process (proc_pid_stat(5), field 22).
func findProcess(pid int) (process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, fmt.Errorf("looking for process %d: %w", pid, err)
	}
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 20 {
		return process{}, fmt.Errorf("process %d has an odd stat", pid)
	}
	start, err := strconv.ParseUint(fields[19], 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("process %d has an odd stat: %w", pid, err)
	}
	if fields[0] == "Z" {
		return process{}, fmt.Errorf("process %d has ended: %w", pid, os.ErrProcessDone)
	}
	return process{pid, start}, nil
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
	if err := waitPidfd(fd, -1); err != nil {
		return err
	}
	// If it is a child of this process it is to be reaped; else that fails.
	unix.Wait4(p.PID, nil, unix.WNOHANG, nil)
	return nil
}

// waitPidfd waits until a process has ended, or for milliseconds.
func waitPidfd(fd, timeout int) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, timeout)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return fmt.Errorf("waiting for a process: %w", err)
		case n == 0:
			return os.ErrDeadlineExceeded
		default:
			return nil
		}
	}
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
