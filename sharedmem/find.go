package sharedmem

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"podd/pagesync"
	"podd/procfs"
)

const (
	pageSize = pagesync.PageSize
	// MaxName is the longest name of a memfd (MFD_NAME_MAX_LEN of mm/memfd.c).
	MaxName = 249
	// MaxSegments is how many segments of a pod are carried; CRIU carries the others.
	MaxSegments = 1024
	// maxID is the highest number that CRIU's images have for a segment.
	maxID = math.MaxUint32
	// sealSeal is F_SEAL_SEAL of include/uapi/linux/fcntl.h: what a memfd has that
	// can't be sealed.
	sealSeal = 1
)

// Segment says what a segment is.
type Segment struct {
	// ID is the inode number, which is the number in CRIU's images.
	ID uint64
	// Name is what the memfd at the other end is called: as CRIU would.
	Name string
	// Sealable is false for one that was made without MFD_ALLOW_SEALING.
	Sealable bool
	// Size is that of the file, in bytes.
	Size int64
}

// segment is a segment of a running pod, and what the target has of it.
type segment struct {
	Segment
	dev    uint64
	file   *os.File
	chunks map[int64]*chunk
	// announced is the size that the target knows, or -1.
	announced int64
	// mappedBy is how much of it the mappings of each process show, in bytes.
	mappedBy map[int]uint64
}

// kernelMount is the device of the kernel's own mount of tmpfs.
func kernelMount() (dev uint64, err error) {
	fd, err := unix.MemfdCreate("podd", unix.MFD_CLOEXEC)
	if err != nil {
		return 0, os.NewSyscallError("memfd_create", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, os.NewSyscallError("fstat", err)
	}
	return st.Dev, nil
}

// find looks for the segments of all processes of a cgroup. Processes that end or change
// meanwhile are none to wait for: what is not found is CRIU's. The caller closes the
// files.
func find(cgroup string, dev uint64) (map[uint64]*segment, error) {
	pids, err := procfs.CgroupProcesses(cgroup)
	if err != nil {
		return nil, err
	}
	f := finder{dev: dev, found: map[uint64]*segment{}}
	for _, pid := range pids {
		err := errors.Join(f.mappings(pid), f.descriptors(pid))
		if err != nil && !procfs.Gone(err) && !errors.Is(err, fs.ErrNotExist) {
			closeAll(f.found)
			return nil, fmt.Errorf("looking for shared memory of process %d: %w", pid, err)
		}
	}
	return f.found, nil
}

func closeAll(segments map[uint64]*segment) {
	for _, s := range segments {
		s.file.Close()
	}
}

type finder struct {
	dev   uint64
	found map[uint64]*segment
}

// mappings looks at /proc/PID/maps.
func (f *finder) mappings(pid int) error {
	mappings, err := procfs.Mappings(pid)
	if err != nil {
		return err
	}
	for _, m := range mappings {
		if m.Inode == 0 || unix.Mkdev(m.Major, m.Minor) != f.dev {
			continue
		}
		if f.found[m.Inode] == nil {
			f.add(fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, m.Start, m.End))
		}
		if s := f.found[m.Inode]; s != nil {
			s.mappedBy[pid] += m.End - m.Start
		}
	}
	return nil
}

// descriptors looks at /proc/PID/fd.
func (f *finder) descriptors(pid int) error {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	names, err := procfs.ReadNames(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		path := dir + "/" + name
		if link, err := os.Readlink(path); err != nil || !strings.HasPrefix(link, "/memfd:") {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && st.Dev == f.dev && f.found[st.Ino] == nil {
			f.add(path)
		}
	}
	return nil
}

// add takes a segment that is carried. One that is not, or that has just gone, is CRIU's.
func (f *finder) add(path string) {
	if len(f.found) == MaxSegments {
		return
	}
	file, err := os.Open(path)
	if err != nil {
		return
	}
	if s := describe(file, path, f.dev); s != nil && f.found[s.ID] == nil {
		f.found[s.ID] = s
		return
	}
	file.Close()
}

// describe returns nil for what is left to CRIU.
func describe(file *os.File, path string, dev uint64) *segment {
	var st unix.Stat_t
	if unix.Fstat(int(file.Fd()), &st) != nil || st.Dev != dev || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Ino > maxID || st.Size <= 0 {
		return nil
	}
	link, err := os.Readlink(path)
	if err != nil {
		return nil
	}
	link = strings.TrimSuffix(link, " (deleted)")
	// As dump_one_memfd of criu/memfd.c.
	name, isMemfd := strings.CutPrefix(link, "/memfd:")
	if !isMemfd && link != "/dev/zero" || len(name) > MaxName {
		return nil
	}
	seals, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		return nil
	}
	return &segment{
		Segment: Segment{ID: st.Ino, Name: name, Sealable: seals != sealSeal, Size: st.Size},
		dev:     st.Dev, file: file, chunks: map[int64]*chunk{}, announced: -1, mappedBy: map[int]uint64{},
	}
}
