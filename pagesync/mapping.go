package pagesync

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

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

// mapping is one line of /proc/PID/maps or smaps.
type mapping struct {
	span
	perms string // "rw-p"
	inode uint64
	name  string
}

// parseMapping parses a line of /proc/PID/maps (proc_pid_maps(5)):
//
//	7f0e4c000000-7f0e4c021000 rw-p 00000000 00:00 0     [heap]
//
// ok is false for any other line, as smaps has.
func parseMapping(line []byte) (m mapping, ok bool) {
	addresses, rest, ok := bytes.Cut(line, []byte(" "))
	if !ok {
		return m, false
	}
	start, end, ok := bytes.Cut(addresses, []byte("-"))
	if !ok {
		return m, false
	}
	var err1, err2, err3 error
	m.start, err1 = strconv.ParseUint(string(start), 16, 64)
	m.end, err2 = strconv.ParseUint(string(end), 16, 64)
	perms, rest, ok1 := bytes.Cut(rest, []byte(" "))
	_, rest, ok2 := bytes.Cut(rest, []byte(" ")) // offset
	_, rest, ok3 := bytes.Cut(rest, []byte(" ")) // device
	inode, name, _ := bytes.Cut(rest, []byte(" "))
	m.inode, err3 = strconv.ParseUint(string(inode), 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || !ok1 || !ok2 || !ok3 || len(perms) != 4 {
		return m, false
	}
	m.perms = string(perms)
	m.name = string(bytes.TrimLeft(name, " "))
	return m, true
}

// anonymous reports whether the mapping is private anonymous memory that can be
// written and not executed, by what maps shows.
func (m mapping) anonymous() bool {
	return m.perms == "rw-p" && m.inode == 0 &&
		(m.name == "" || m.name == "[heap]" || strings.HasPrefix(m.name, "[anon:"))
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
				if n := len(spans); n > 0 {
					m.start = max(m.start, spans[n-1].end)
				}
				if !m.empty() {
					spans = append(spans, m.span)
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
			next, ok := parseMapping(line)
			if !ok {
				return nil, 0, fmt.Errorf("malformed line %q in smaps", line)
			}
			m = next
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

// The ioctl of /proc/PID/maps since Linux 6.11 (include/uapi/linux/fs.h).
const (
	procmapQuery = 0xc0686611 // _IOWR('f', 17, struct procmap_query)

	procmapReadable = 1 << 0
	procmapWritable = 1 << 1
	procmapNext     = 1 << 4 // PROCMAP_QUERY_COVERING_OR_NEXT_VMA
)

// procmap is struct procmap_query.
type procmap struct {
	size, queryFlags, queryAddr                uint64
	start, end, flags, pageSize, offset, inode uint64
	devMajor, devMinor, nameSize, buildIDSize  uint32
	nameAddr, buildIDAddr                      uint64
}

// stillCarried returns what is still the same kind of memory as in known,
// ascending spans of carriedMappings, a moment before; where a mapping has
// grown, its new part as well, for its flags are the same. It reads maps, which
// costs less than smaps, and of it only what is asked for.
func stillCarried(pid int, known []span) ([]span, error) {
	name := fmt.Sprintf("/proc/%d/maps", pid)
	fd, err := procfs.Open(name)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var spans []span
	var reached uint64
	for _, k := range known {
		for at := max(k.start, reached); at < k.end; {
			q := procmap{queryFlags: procmapNext, queryAddr: at}
			q.size = uint64(unsafe.Sizeof(q))
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), procmapQuery, uintptr(unsafe.Pointer(&q)))
			switch errno {
			case 0:
			case unix.EINTR:
				continue
			case unix.ENOENT: // nothing at or above
				return spans, nil
			case unix.ESRCH:
				return nil, unix.ESRCH
			case unix.ENOTTY:
				return stillCarriedByText(name, known)
			default:
				return nil, os.NewSyscallError("PROCMAP_QUERY", errno)
			}
			if q.start >= k.end {
				break
			}
			if q.flags == procmapReadable|procmapWritable && q.inode == 0 && q.pageSize == PageSize && q.end-q.start <= maxMapping {
				spans = append(spans, span{q.start, q.end})
			}
			at = q.end
			reached = q.end
		}
	}
	return spans, nil
}

// stillCarriedByText is stillCarried for kernels before 6.11.
func stillCarriedByText(maps string, known []span) ([]span, error) {
	b, err := os.ReadFile(maps)
	if err != nil {
		return nil, err
	}
	var spans []span
	for line := range bytes.Lines(b) {
		m, ok := parseMapping(bytes.TrimSuffix(line, []byte("\n")))
		if !ok {
			return nil, fmt.Errorf("malformed line %q in maps", line)
		}
		if m.anonymous() && m.bytes() <= maxMapping && slices.ContainsFunc(known, func(k span) bool { return !k.intersect(m.span).empty() }) {
			spans = append(spans, m.span)
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
