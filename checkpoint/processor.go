package checkpoint

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CRIU and the processes that it dumps take turns: it stops one, has it do
// something, and waits. Each turn across two processors costs an interrupt and a
// wake-up, so a dump takes about half the time, for one process, if all of them
// are on one processor. A frozen pod has no use for more.

// cpuset is the part of a cgroup that says on which processors its processes run.
type cpuset struct {
	dir string
	v1  bool
}

// cpusetOf finds the cpuset of the cgroup that a Freezer has in dir. It may not
// exist: then nothing is gathered.
func cpusetOf(dir string, v1 bool) cpuset {
	if v1 {
		dir = strings.Replace(dir, "/freezer/", "/cpuset/", 1)
	}
	return cpuset{dir, v1}
}

func (c cpuset) read(dir, file string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return "", fmt.Errorf("reading on which processors a cgroup runs: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (c cpuset) write(processors string) error {
	if err := os.WriteFile(filepath.Join(c.dir, "cpuset.cpus"), []byte(processors), 0); err != nil {
		return fmt.Errorf("setting on which processors a cgroup runs: %w", err)
	}
	return nil
}

// effective are the processors of a cgroup's processes.
func (c cpuset) effective(dir string) (string, error) {
	if c.v1 {
		return c.read(dir, "cpuset.effective_cpus")
	}
	return c.read(dir, "cpuset.cpus.effective")
}

// inherited is what cpuset.cpus holds when it restricts nothing.
func (c cpuset) inherited() (string, error) {
	if c.v1 {
		return c.read(filepath.Dir(c.dir), "cpuset.cpus")
	}
	return "", nil
}

// gather puts all processes of the cgroup on the processor that was idle for
// longest since the times before, unless somebody has chosen processors for it.
// It does nothing where there are no cpusets.
func (c cpuset) gather(before idleTimes) error {
	own, err := c.read(c.dir, "cpuset.cpus")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	inherited, err := c.inherited()
	if err != nil || own != inherited {
		return err
	}
	text, err := c.effective(c.dir)
	if err != nil {
		return err
	}
	processors, err := parseProcessors(text)
	if err != nil {
		return err
	}
	now, err := readIdleTimes()
	if err != nil {
		return err
	}
	idlest := slices.MaxFunc(processors, func(a, b int) int { return cmp.Compare(now[a]-before[a], now[b]-before[b]) })
	return c.write(strconv.Itoa(idlest))
}

// spread undoes gather. What somebody else has set is one processor only by
// chance, and then it is lost.
func (c cpuset) spread() error {
	own, err := c.read(c.dir, "cpuset.cpus")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := strconv.Atoi(own); err != nil {
		return nil // several, or none: not gathered
	}
	inherited, err := c.inherited()
	if err != nil || own == inherited {
		return err
	}
	if inherited == "" {
		inherited = "\n" // an empty write is none
	}
	return c.write(inherited)
}

// join lets a process run only where those of the cgroup do.
func (c cpuset) join(pid int) error {
	text, err := c.effective(c.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	processors, err := parseProcessors(text)
	if err != nil {
		return err
	}
	var set unix.CPUSet
	for _, p := range processors {
		set.Set(p)
	}
	if err := unix.SchedSetaffinity(pid, &set); err != nil {
		return fmt.Errorf("choosing the processors of process %d: %w", pid, err)
	}
	return nil
}

// maxProcessor is the highest number of a processor that unix.CPUSet can hold.
const maxProcessor = 1023

// parseProcessors reads the list format of cpuset(7), such as "0-3,8". It is never
// empty.
func parseProcessors(list string) ([]int, error) {
	var processors []int
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(first)
		b := a
		if err == nil && isRange {
			b, err = strconv.Atoi(last)
		}
		if err != nil || a < 0 || b < a || b > maxProcessor {
			return nil, fmt.Errorf("%q is not a list of processors", list)
		}
		for p := a; p <= b; p++ {
			processors = append(processors, p)
		}
	}
	return processors, nil
}

// idleTimes is how long each processor has had nothing to do since the machine
// was started, in ticks.
type idleTimes map[int]int64

// readIdleTimes reads /proc/stat (proc_stat(5)).
func readIdleTimes() (idleTimes, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return nil, fmt.Errorf("reading how busy the processors are: %w", err)
	}
	times := idleTimes{}
	for line := range strings.Lines(string(b)) {
		var processor int
		var user, nice, system, idle int64
		if n, _ := fmt.Sscanf(line, "cpu%d %d %d %d %d", &processor, &user, &nice, &system, &idle); n == 5 {
			times[processor] = idle
		}
	}
	return times, nil
}
