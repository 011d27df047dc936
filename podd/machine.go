package podd

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"podd/pod"
	"podd/procfs"
	"podd/version"
)

// describeMachine fills in what this machine is: the part of the host's record
// that the configuration does not give.
func describeMachine(host *pod.Host) error {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return fmt.Errorf("reading the kernel's release: %w", err)
	}
	host.Kernel = unix.ByteSliceToString(uts.Release[:])
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("reading the size of memory: %w", err)
	}
	host.MemoryBytes = int64(info.Totalram) * int64(info.Unit)
	host.CPUs = runtime.NumCPU()
	host.Version = version.String()
	var err error
	host.CPU, err = cpuinfoLine("model name")
	return err
}

// cpuFlags is the set of features of the processor, as the kernel names them.
func cpuFlags() ([]string, error) {
	line, err := cpuinfoLine("flags")
	return strings.Fields(line), err
}

// cpuinfoLine is the value of a key for the first processor, empty when there
// is no such key.
func cpuinfoLine(key string) (string, error) {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", fmt.Errorf("reading the processor's features: %w", err)
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(name) == key {
			return strings.TrimSpace(value), nil
		}
	}
	return "", lines.Err()
}

// availableMemory is how much memory programs can still take, in bytes.
func availableMemory() (int64, error) {
	_, available, err := procfs.Memory()
	if err != nil {
		return 0, fmt.Errorf("reading the state of memory: %w", err)
	}
	return available, nil
}
