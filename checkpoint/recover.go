package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// Recover mends what a CRIU that was killed in a dump leaves behind: TCP
// sockets in repair mode, on which the program would get errors. It switches
// repair mode off on every socket of every process in the pid namespace of
// pid (the pod's init, as this process sees it) and returns on how many it
// did so. The pod must still be frozen. Calling it when there is nothing to
// mend does nothing, so a daemon that finds a frozen pod after its own crash
// calls Recover, unblocks the network and thaws.
func Recover(pid int) (int, error) {
	processes, err := procfs.PodProcesses(pid)
	if err != nil {
		return 0, fmt.Errorf("recovering sockets: %w", err)
	}
	n := 0
	var errs []error
	for _, p := range processes {
		mended, err := recoverProcess(p.PID)
		n += mended
		if err != nil && !procfs.Gone(err) {
			errs = append(errs, fmt.Errorf("recovering sockets of process %d: %w", p.PID, err))
		}
	}
	return n, errors.Join(errs...)
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
