package pagesync

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// Mappings of other lengths, in bytes, are left to CRIU: a small one costs more
// apart than it saves; a huge one is reserved rather than used, and the pager has
// a place for every GiB.
const (
	minMapping = 64 << 10
	maxMapping = 64 << 30
)

// mapping is one line of /proc/PID/smaps.
type mapping struct{ procfs.Mapping }

func (m mapping) bytes() int64 { return int64(m.End - m.Start) }

// anonymous reports whether the mapping is private anonymous memory that can be
// written and not executed, by what maps shows.
func (m mapping) anonymous() bool {
	return m.Readable && m.Writable && !m.Executable && !m.Shared && m.Inode == 0 &&
		(m.Name == "" || m.Name == "[heap]" || strings.HasPrefix(m.Name, "[anon:"))
}

// carriedFlags are the VmFlags of smaps (proc_pid_smaps(5)) that a mapping
// carried by podd may have. Those that are not here are hugetlb (ht), locked
// (lo, lf), device memory (io, pf, mm), growing stacks (gd), droppable (dp),
// wiped on fork (wf: the pager could not tell the child's pages from its
// parent's), somebody's userfaultfd (um, uw, ui), shadow stacks (ss), sealed
// (sl), and what will be invented.
var carriedFlags = map[string]bool{
	"rd": true, "wr": true, "mr": true, "mw": true, "me": true, "ac": true, "nr": true, "sd": true,
	"dd": true, "dc": true, "sr": true, "rr": true, "hg": true, "nh": true, "mg": true, "gu": true,
}

// carried reports whether podd carries the mapping. What it accepts is a part of
// what CRIU restores lazily (vma_entry_can_be_lazy in criu/include/vma.h, with
// criu/proc_parse.c): private anonymous memory, neither locked nor of huge pages.
func (m mapping) carried(flags string) bool {
	if !m.anonymous() || m.bytes() < minMapping || m.bytes() > maxMapping {
		return false
	}
	n := 0
	for f := range strings.FieldsSeq(flags) {
		if !carriedFlags[f] {
			return false
		}
		n++
	}
	return n > 0
}

// carriedMappings reads /proc/PID/smaps. shared is how many bytes of the mappings
// are other processes' too, since a fork: of a page that n have, (n-1)/n.
func carriedMappings(pid int) (spans []span, shared int64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	return parseSmaps(f)
}

func parseSmaps(r io.Reader) (spans []span, shared int64, err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	var m mapping
	var resident, proportional int64 // of m, in KiB
	for {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return nil, 0, errors.New("smaps has a line of more than 64 KiB")
		}
		if err != nil && err != io.EOF {
			return nil, 0, err
		}
		line = bytes.TrimSuffix(line, []byte("\n"))
		if flags, ok := bytes.CutPrefix(line, []byte("VmFlags:")); ok {
			if m.carried(string(flags)) {
				// The process may change its mappings while they are read, so
				// that one comes after a part of itself.
				s := span{m.Start, m.End}
				if n := len(spans); n > 0 {
					s.start = max(s.start, spans[n-1].end)
				}
				if !s.empty() {
					spans = append(spans, s)
					shared += (resident - proportional) << 10
				}
			}
			m, resident, proportional = mapping{}, 0, 0
		} else if figure, ok := bytes.CutPrefix(line, []byte("Rss:")); ok {
			resident = kibibytes(figure)
		} else if figure, ok := bytes.CutPrefix(line, []byte("Pss:")); ok {
			proportional = kibibytes(figure)
		} else if len(line) > 0 && (line[0] < 'A' || line[0] > 'Z') {
			// Lines of a mapping's figures begin with a capital letter.
			next, ok := procfs.ParseMapping(line)
			if !ok {
				return nil, 0, fmt.Errorf("malformed line %q in smaps", line)
			}
			m.Mapping = next
		}
		if err == io.EOF {
			return spans, shared, nil
		}
	}
}

// kibibytes reads a figure of smaps, such as "   132 kB".
func kibibytes(figure []byte) int64 {
	n, err := strconv.ParseInt(string(bytes.TrimSuffix(bytes.TrimSpace(figure), []byte(" kB"))), 10, 64)
	if err != nil {
		return 0 // it only helps to choose
	}
	return n
}

// stillCarried returns what is still the same kind of memory as in known,
// ascending spans of carriedMappings, a moment before; where a mapping has
// grown, its new part as well, for its flags are the same. It reads maps, which
// costs less than smaps, and of it only what is asked for.
func stillCarried(pid int, known []span) ([]span, error) {
	maps, err := procfs.OpenMaps(pid)
	if err != nil {
		return nil, err
	}
	defer maps.Close()
	var spans []span
	var reached uint64
	for _, k := range known {
		for at := max(k.start, reached); at < k.end; {
			m, ok, err := maps.Next(at)
			if err != nil {
				return nil, err
			}
			if !ok || m.Start >= k.end {
				break
			}
			if (mapping{m}).anonymous() && m.End-m.Start <= maxMapping && (m.PageSize == 0 || m.PageSize == PageSize) {
				spans = append(spans, span{m.Start, m.End})
			}
			at = m.End
			reached = m.End
		}
	}
	return spans, nil
}

// mostThreads is how many threads a process has at most whose stack pointers are
// looked for: each costs the freeze 5 to 10 microseconds, and with more most wait
// for something.
const mostThreads = 4

// stackPointers returns the stack pointers of a frozen process's threads, of
// those that the kernel tells. CRIU keeps the pages that hold them out of what
// is restored lazily (is_stack in criu/mem.c), for the threads go on there at
// once; elsewhere they would wait for a fault. A process's only thread is not
// looked at: its stack is not carried at all.
func stackPointers(pid int) ([]uint64, error) {
	dir := fmt.Sprintf("/proc/%d/task", pid)
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	// The directory has a link for each thread, "." and "..".
	if threads := st.Nlink - 2; threads < 2 || threads > mostThreads {
		return nil, nil
	}
	entries, err := procfs.ReadNames(dir)
	if err != nil {
		return nil, err
	}
	var pointers []uint64
	var buf [256]byte
	for _, tid := range entries {
		n, err := procfs.ReadSmall(dir+"/"+tid+"/syscall", buf[:])
		if procfs.Gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// "NUMBER ARGUMENT... SP PC", "-1 SP PC" or "running".
		fields := strings.Fields(string(buf[:n]))
		if len(fields) < 3 {
			continue
		}
		sp, err := strconv.ParseUint(fields[len(fields)-2], 0, 64)
		if err != nil {
			return nil, fmt.Errorf("malformed %q in syscall of thread %s", buf[:n], tid)
		}
		pointers = append(pointers, sp)
	}
	return pointers, nil
}
