package checkpoint

import (
	"bytes"
	"fmt"
	"os"
	"strings"

	"podd/procfs"
)

// CRIU needs /proc/PID/smaps of every process for the flags of its mappings, and the
// kernel looks at each page for it: some 20 ms for 1 GiB. /proc/PID/maps has all but the flags
// and takes no time. So the flags of large processes are read just before the freeze,
// and CRIU gets a text made of both, if the two agree on every mapping.
//
// What maps can't show is a change of flags in between, some milliseconds, on a
// mapping that stays: that of locking is seen by the amount of locked memory; an
// madvise(2) at that moment is lost. Nothing but smaps has these flags, so to find out
// would take that long again in the freeze, where memory is compared on all processors.
// And a dump that noticed would have to mend CRIU's image, not fail: allocators give
// such advice all the time.

// textFrom is how much of a process's memory must be left out for that, in bytes.
// Below, the kernel is fast.
const textFrom = 16 << 20

// mappingFlags are the flags of a process's mappings.
type mappingFlags struct {
	// flags is the line of smaps that begins with VmFlags, by the mapping's own.
	flags  map[string]string
	locked string
}

// readLargeFlags reads the flags of the large processes of a cgroup. One that
// can't be read has just ended, or changes; it is left to CRIU.
func readLargeFlags(cgroup string) map[int]mappingFlags {
	all := map[int]mappingFlags{}
	if cgroup == "" {
		return all
	}
	pids, err := procfs.CgroupProcesses(cgroup)
	if err != nil {
		return all
	}
	for _, pid := range pids {
		if residentSize(pid) < textFrom {
			continue
		}
		if flags, err := readFlags(pid); err == nil {
			all[pid] = flags
		}
	}
	return all
}

// residentSize is how much memory a process has, in bytes; 0 if it has ended.
func residentSize(pid int) int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0
	}
	var total, resident int64
	if _, err := fmt.Sscan(string(b), &total, &resident); err != nil {
		return 0
	}
	return resident * int64(os.Getpagesize())
}

func readFlags(pid int) (mappingFlags, error) {
	f := mappingFlags{flags: map[string]string{}}
	var err error
	if f.locked, err = procfs.StatusField(pid, "VmLck"); err != nil {
		return f, err
	}
	text, err := shortSmaps(pid)
	if err != nil {
		return f, err
	}
	mapping := ""
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "VmFlags:") {
			f.flags[mapping] = line
		} else {
			mapping = line
		}
	}
	return f, nil
}

// isMapping reports whether a line of smaps begins a mapping: the others begin with a
// name in capitals and a colon.
func isMapping(line []byte) bool {
	dash := bytes.IndexByte(line, '-')
	return dash > 0 && len(bytes.Trim(line[:dash], "0123456789abcdef")) == 0
}

// text returns what smaps of the process would say now, but for the amounts; ok is
// false when there is a mapping whose flags are not known.
func (f mappingFlags) text(pid int) (text []byte, ok bool) {
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, false
	}
	if locked, err := procfs.StatusField(pid, "VmLck"); err != nil || locked != f.locked {
		return nil, false
	}
	text = make([]byte, 0, 3*len(maps))
	for line := range bytes.Lines(maps) {
		flags, known := f.flags[string(bytes.TrimSuffix(line, []byte("\n")))]
		if !known {
			return nil, false
		}
		text = append(append(append(text, line...), flags...), '\n')
	}
	return text, len(text) > 0
}
