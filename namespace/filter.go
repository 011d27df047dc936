package namespace

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer/seccomp"
	"golang.org/x/sys/unix"
)

// A program started with filterArg and filterVariable is a showFilter.
const (
	filterArg      = "show-filter"
	filterVariable = "_PODD_SHOW_FILTER"
)

// filterTimeout bounds a look at the filter. It takes milliseconds.
const filterTimeout = 10 * time.Second

// filterProgram is the system call filter of every pod as the kernel has it: an
// array of struct sock_filter. libcontainer can't do anything with it but load
// it, which takes 15 ms. So a process is started that does, and its filter is
// read as CRIU would read it (PTRACE_SECCOMP_GET_FILTER): podinit loads it, and
// those of pods that come from elsewhere are compared with it.
var filterProgram = sync.OnceValues(func() ([]byte, error) {
	program, err := readFilter()
	if err != nil {
		return nil, fmt.Errorf("looking at the system call filter: %w", err)
	}
	return program, nil
})

// filterPipe returns a pipe that the filter can be read from.
func filterPipe() (*os.File, error) {
	program, err := filterProgram()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	// At most 32 KiB, which a pipe has room for.
	_, err = w.Write(program)
	if err := errors.Join(err, w.Close()); err != nil {
		return nil, errors.Join(fmt.Errorf("passing the system call filter on: %w", err), r.Close())
	}
	return r, nil
}

// showFilter is the process whose filter is read. It says on its standard
// output when it has it, and lives until its standard input ends.
func showFilter() int {
	filter, err := systemCallFilter()
	if err == nil {
		// Init's caller holds the main thread, and it is this one alone that
		// gets the filter.
		_, err = seccomp.InitSeccomp(filter)
	}
	if err == nil {
		_, err = os.Stdout.WriteString("+")
	}
	if err == nil {
		_, err = io.Copy(io.Discard, os.Stdin)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func readFilter() (_ []byte, err error) {
	cmd := exec.Command("/proc/self/exe", filterArg)
	cmd.Env = []string{filterVariable + "=1"}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, errors.Join(err, stdin.Close())
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	timer := time.AfterFunc(filterTimeout, func() { cmd.Process.Kill() })
	defer func() {
		timer.Stop()
		cmd.Process.Kill()
		// How it ended is of no interest, and somebody else may reap it.
		_ = cmd.Wait()
	}()
	if _, err := io.ReadFull(stdout, make([]byte, 1)); err != nil {
		return nil, fmt.Errorf("waiting for the filter: %w", err)
	}
	// All requests must come from the thread that is the tracer.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pid := cmd.Process.Pid
	if err := ptrace(unix.PTRACE_SEIZE, pid, 0, nil); err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	if err := ptrace(unix.PTRACE_INTERRUPT, pid, 0, nil); err != nil {
		return nil, fmt.Errorf("stopping: %w", err)
	}
	// With no buffer it says how many instructions there are; and that there
	// is no such process while it has not stopped yet.
	const maxInstructions = 4096 // BPF_MAXINSNS
	buf := make([]byte, maxInstructions*8)
	for deadline := time.Now().Add(filterTimeout); ; {
		n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), 0, uintptr(unsafe.Pointer(&buf[0])), 0, 0)
		switch {
		case errno == 0:
			return buf[:n*8], nil
		case errno != unix.ESRCH || time.Now().After(deadline):
			return nil, fmt.Errorf("reading: %w", errno)
		}
		runtime.Gosched()
	}
}

func ptrace(request, pid int, addr uintptr, data unsafe.Pointer) error {
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, uintptr(request), uintptr(pid), addr, uintptr(data), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
