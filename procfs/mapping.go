package procfs

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"slices"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Mapping is part of a process's memory: a line of /proc/PID/maps (proc_pid_maps(5)).
type Mapping struct {
	// Start and End are addresses; End is not part of it.
	Start, End                             uint64
	Readable, Writable, Executable, Shared bool
	// Offset is where in its file it begins, in bytes; Major and Minor are the
	// file's device, Inode its number, 0 if there is no file.
	Offset       uint64
	Major, Minor uint32
	Inode        uint64
	// PageSize is in bytes; 0 if it is not known.
	PageSize uint64
	// Name is the path of the file, or what the kernel has instead, such as [heap].
	// Maps does not give it.
	Name string
}

// ParseMapping parses a line of maps or of smaps:
//
//	7f0e4c000000-7f0e4c021000 rw-p 00000000 00:00 0     [heap]
//
// ok is false for any other line, as smaps has.
func ParseMapping(line []byte) (m Mapping, ok bool) {
	addresses, rest, ok1 := bytes.Cut(line, []byte(" "))
	start, end, ok2 := bytes.Cut(addresses, []byte("-"))
	perms, rest, ok3 := bytes.Cut(rest, []byte(" "))
	offset, rest, ok4 := bytes.Cut(rest, []byte(" "))
	device, rest, ok5 := bytes.Cut(rest, []byte(" "))
	major, minor, ok6 := bytes.Cut(device, []byte(":"))
	if !ok1 || !ok2 || !ok3 || !ok4 || !ok5 || !ok6 || len(perms) != 4 {
		return m, false
	}
	inode, name, _ := bytes.Cut(rest, []byte(" "))
	var wide [2]uint64
	for _, number := range []struct {
		text []byte
		base int
		bits int
		to   *uint64
	}{
		{start, 16, 64, &m.Start}, {end, 16, 64, &m.End}, {offset, 16, 64, &m.Offset},
		{major, 16, 32, &wide[0]}, {minor, 16, 32, &wide[1]}, {inode, 10, 64, &m.Inode},
	} {
		var err error
		if *number.to, err = strconv.ParseUint(string(number.text), number.base, number.bits); err != nil {
			return m, false
		}
	}
	m.Major, m.Minor = uint32(wide[0]), uint32(wide[1])
	m.Readable, m.Writable, m.Executable, m.Shared = perms[0] == 'r', perms[1] == 'w', perms[2] == 'x', perms[3] == 's'
	m.Name = string(bytes.TrimLeft(name, " "))
	return m, true
}

// Mappings lists the mappings of a process, in order of their addresses.
func Mappings(pid int) ([]Mapping, error) { return readMappings(fmt.Sprintf("/proc/%d/maps", pid)) }

func readMappings(name string) ([]Mapping, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	all := make([]Mapping, 0, bytes.Count(text, []byte("\n")))
	for line := range bytes.Lines(text) {
		m, ok := ParseMapping(bytes.TrimSuffix(line, []byte("\n")))
		if !ok {
			return nil, fmt.Errorf("malformed line %q in maps", line)
		}
		all = append(all, m)
	}
	return all, nil
}

// Maps answers questions about the mappings of one process.
type Maps struct {
	fd int
	// lines are in place of the kernel's own answers on Linux before 6.11.
	lines []Mapping
}

// OpenMaps opens the mappings of a process. Close it.
func OpenMaps(pid int) (*Maps, error) {
	fd, err := Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	return &Maps{fd: fd}, nil
}

// Close ends it.
func (m *Maps) Close() error { return unix.Close(m.fd) }

// The ioctl of /proc/PID/maps since Linux 6.11 (include/uapi/linux/fs.h).
const (
	procmapQuery = 0xc0686611 // _IOWR('f', 17, struct procmap_query)

	procmapReadable, procmapWritable, procmapExecutable, procmapShared = 1, 2, 4, 8

	procmapNext = 1 << 4 // PROCMAP_QUERY_COVERING_OR_NEXT_VMA
)

// procmap is struct procmap_query.
type procmap struct {
	size, queryFlags, queryAddr                uint64
	start, end, flags, pageSize, offset, inode uint64
	devMajor, devMinor, nameSize, buildIDSize  uint32
	nameAddr, buildIDAddr                      uint64
}

// Next returns the mapping that has an address, or else the first above; ok is false
// if there is none. The error is ESRCH if the process has ended.
func (m *Maps) Next(address uint64) (found Mapping, ok bool, err error) {
	for m.lines == nil {
		q := procmap{queryFlags: procmapNext, queryAddr: address}
		q.size = uint64(unsafe.Sizeof(q))
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(m.fd), procmapQuery, uintptr(unsafe.Pointer(&q)))
		switch errno {
		case 0:
			return Mapping{
				Start: q.start, End: q.end, Offset: q.offset, Major: q.devMajor, Minor: q.devMinor, Inode: q.inode, PageSize: q.pageSize,
				Readable: q.flags&procmapReadable != 0, Writable: q.flags&procmapWritable != 0,
				Executable: q.flags&procmapExecutable != 0, Shared: q.flags&procmapShared != 0,
			}, true, nil
		case unix.EINTR:
		case unix.ENOENT:
			return found, false, nil
		case unix.ESRCH:
			return found, false, unix.ESRCH
		case unix.ENOTTY:
			if err := m.readText(); err != nil {
				return found, false, err
			}
		default:
			return found, false, os.NewSyscallError("PROCMAP_QUERY", errno)
		}
	}
	i, _ := slices.BinarySearchFunc(m.lines, address, func(l Mapping, address uint64) int {
		return cmp.Or(cmp.Compare(l.End, address), -1)
	})
	if i == len(m.lines) {
		return found, false, nil
	}
	return m.lines[i], true, nil
}

// readText reads all mappings at once.
func (m *Maps) readText() (err error) {
	m.lines, err = readMappings(fmt.Sprintf("/proc/self/fd/%d", m.fd))
	for i := range m.lines {
		m.lines[i].Name = ""
	}
	return err
}
