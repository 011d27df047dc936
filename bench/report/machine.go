package report

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Machine is what figures depend on.
type Machine struct {
	CPU         string `json:"cpu"`
	Cores       int    `json:"cores"`
	MemoryBytes uint64 `json:"memoryBytes"`
	Kernel      string `json:"kernel"`
	System      string `json:"system"`
	// Load is the load average of the last minute when the run began: what
	// else the machine was busy with.
	Load string `json:"load"`
	// Commit is the revision of this project, with "-dirty" where the tree had
	// changes.
	Commit string `json:"commit"`
	// Versions are those of the programs that take part, by name.
	Versions map[string]string `json:"versions"`
}

// ThisMachine describes the machine that this runs on. versions are commands
// that print a program's version, by its name; one that can't be run is left
// out.
func ThisMachine(versions map[string][]string) (Machine, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return Machine{}, fmt.Errorf("asking for the kernel's version: %w", err)
	}
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return Machine{}, fmt.Errorf("asking for the memory's size: %w", err)
	}
	m := Machine{
		Cores: runtime.NumCPU(), MemoryBytes: uint64(info.Totalram) * uint64(info.Unit), Kernel: unix.ByteSliceToString(uts.Release[:]),
		Versions: map[string]string{"go": strings.TrimPrefix(runtime.Version(), "go")},
	}
	var err error
	if m.CPU, err = value("/proc/cpuinfo", "model name", ":"); err != nil {
		return Machine{}, err
	}
	if m.System, err = value("/etc/os-release", "PRETTY_NAME", "="); err != nil {
		return Machine{}, err
	}
	load, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return Machine{}, fmt.Errorf("asking for the load: %w", err)
	}
	m.Load, _, _ = strings.Cut(string(load), " ")
	for name, argv := range versions {
		if out, err := exec.Command(argv[0], argv[1:]...).Output(); err == nil {
			m.Versions[name] = version(string(out))
		}
	}
	if out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").Output(); err == nil {
		m.Commit = strings.TrimSpace(string(out))
	}
	return m, nil
}

// version returns the first word of a text that begins with a digit, or the
// first line.
func version(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	for word := range strings.FieldsSeq(line) {
		if word[0] >= '0' && word[0] <= '9' {
			return strings.TrimRight(word, ",;")
		}
	}
	return line
}

// value returns that of the first line with a key; "" if there is none.
func value(path, key, separator string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("describing the machine: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if k, v, ok := strings.Cut(lines.Text(), separator); ok && strings.TrimSpace(k) == key {
			return strings.Trim(strings.TrimSpace(v), `"`), nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("reading %s: %w", filepath.Base(path), err)
	}
	return "", nil
}

// String is the machine in a sentence.
func (m Machine) String() string {
	return fmt.Sprintf("%s, %d cores, %s of memory, Linux %s, %s; load %s at the start", m.CPU, m.Cores, format(float64(m.MemoryBytes), "B"), m.Kernel, m.System, m.Load)
}
