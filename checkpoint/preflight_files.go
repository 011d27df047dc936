package checkpoint

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"podd/procfs"
)

// findMounts collects the mounts of all mount namespaces of the pod, and
// reports file systems that can't be carried.
func (s *survey) findMounts(processes []process) error {
	seen := make(map[string]bool)
	s.spaces = make(map[string]bool)
	for _, p := range processes {
		s.collectNamespaces(p)
		ns, err := os.Readlink(p.proc("ns/mnt"))
		if err != nil || seen[ns] {
			continue // a zombie has none
		}
		seen[ns] = true
		mounts, err := readMounts(p)
		if err != nil {
			if procfs.Gone(err) {
				continue
			}
			return fmt.Errorf("reading the mounts of process %d: %w", p.pid, err)
		}
		for _, m := range mounts {
			s.mounts[m.ID] = true
			if err := s.checkMount(p, m); err != nil {
				return err
			}
		}
	}
	return nil
}

// readMounts lists the mounts that p sees.
func readMounts(p process) ([]*mountinfo.Info, error) {
	f, err := os.Open(p.proc("mountinfo"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return mountinfo.GetMountsFromReader(f, nil)
}

// checkMount looks at one mount that p sees.
func (s *survey) checkMount(p process, m *mountinfo.Info) error {
	if _, external := s.options.ExternalMounts[m.Mountpoint]; external {
		return nil
	}
	switch {
	case m.FSType == "fuse" || m.FSType == "fuseblk" || strings.HasPrefix(m.FSType, "fuse."):
		s.block(p, -1, fmt.Sprintf("%s is a FUSE file system (%s)", m.Mountpoint, m.Source),
			"unmount it, or mount it on the host and give it to the pod as a volume")
	case m.FSType == "mqueue":
		dir := p.proc("root", m.Mountpoint)
		if shown, err := isQueue(dir); !shown || err != nil {
			return ignoreGone(err) // or something is mounted over it
		}
		queues, err := os.ReadDir(dir)
		if err != nil {
			return ignoreGone(err)
		}
		for _, q := range queues {
			s.block(p, -1, fmt.Sprintf("has the POSIX message queue /%s in the pod", q.Name()), queueRemedy)
		}
	}
	return nil
}

// queueRemedy is for POSIX message queues, which CRIU does not know; those of
// System V it carries.
const queueRemedy = "end the programs that use it and remove the queue (rm /dev/mqueue/NAME), or have them use System V queues"

func (s *survey) collectNamespaces(p process) {
	entries, err := os.ReadDir(p.proc("ns"))
	if err != nil {
		return // it ended
	}
	for _, e := range entries {
		if link, err := os.Readlink(p.proc("ns", e.Name())); err == nil {
			s.spaces[link] = true
		}
	}
}

// checkPlaces looks at the working directory, root and program of a process.
func (s *survey) checkPlaces(p process) error {
	for _, place := range []struct{ link, name, remedy string }{
		{"cwd", "working directory", "change it to a directory of the pod"},
		{"root", "root directory", "end the process"},
		{"exe", "program file", "start a program that is a file in the pod"},
	} {
		fd, err := unix.Open(p.proc(place.link), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				continue // a kernel thread has no program
			}
			return err
		}
		info, err := readFdinfo(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
		unix.Close(fd)
		if err != nil {
			return err
		}
		if link, err := os.Readlink(p.proc(place.link)); err == nil && strings.HasPrefix(link, "/memfd:") {
			continue // not in any mount
		}
		if !s.mounts[info.mount] {
			s.block(p, -1, fmt.Sprintf("has its %s outside of the pod", place.name), place.remedy)
		}
	}
	return nil
}

// fdinfo is the part of /proc/PID/fdinfo/N that is used here.
type fdinfo struct {
	flags int
	mount int
	// other holds the remaining lines, by what is before the colon.
	other map[string]string
}

func readFdinfo(name string) (fdinfo, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return fdinfo{}, err
	}
	return parseFdinfo(string(b))
}

func parseFdinfo(s string) (fdinfo, error) {
	info := fdinfo{other: make(map[string]string)}
	for line := range strings.Lines(s) {
		key, value, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		value = strings.TrimSpace(value)
		var err error
		switch key {
		case "flags":
			var flags int64
			flags, err = strconv.ParseInt(value, 8, 64)
			info.flags = int(flags)
		case "mnt_id":
			info.mount, err = strconv.Atoi(value)
		default:
			info.other[key] = value
		}
		if err != nil {
			return info, fmt.Errorf("malformed fdinfo line %q", line)
		}
	}
	return info, nil
}

func (s *survey) checkDescriptors(p process) error {
	entries, err := os.ReadDir(p.proc("fd"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		number, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// It may be closed at any moment.
		if err := s.checkDescriptor(descriptor{p, number}); err != nil && !procfs.Gone(err) && !errors.Is(err, unix.EBADF) {
			return fmt.Errorf("descriptor %d: %w", number, err)
		}
	}
	return nil
}

func (s *survey) checkDescriptor(d descriptor) error {
	number := strconv.Itoa(d.number)
	path := d.process.proc("fd", number)
	link, err := os.Readlink(path)
	if err != nil {
		return err
	}
	info, err := readFdinfo(d.process.proc("fdinfo", number))
	if err != nil {
		return err
	}
	kind, _, _ := strings.Cut(link, ":")
	switch {
	case strings.HasPrefix(link, "/"):
		return s.checkFile(d, path, link, info)
	case kind == "socket":
		return s.checkSocket(d)
	case kind == "pipe":
		s.notePipe(d, link, info)
	case kind == "anon_inode":
		return s.checkAnonymous(d, strings.Trim(strings.TrimPrefix(link, "anon_inode:"), "[]"), info)
	case kind == "pidfd":
		s.checkPidfd(d, info)
	case kind == "dmabuf" || kind == "sync_file":
		s.block(d.process, d.number, "has memory of a graphics device open ("+link+")", "use software rendering, such as LIBGL_ALWAYS_SOFTWARE=1")
	case !s.spaces[link]:
		s.block(d.process, d.number, "has a namespace open that is not the pod's ("+link+")", "close it")
	}
	return nil
}

// checkFile looks at a descriptor that has a path.
func (s *survey) checkFile(d descriptor, path, link string, info fdinfo) error {
	switch {
	case strings.HasPrefix(link, "/memfd:"):
		return nil
	case strings.HasPrefix(link, "/secretmem"):
		s.block(d.process, d.number, "uses secret memory (memfd_secret)", "start the program without it")
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		s.block(d.process, d.number, fmt.Sprintf("has the disk device %s open", link), "close it")
		return nil
	case unix.S_IFCHR:
		if name, ok := s.carriedDevice(st.Rdev, info); !ok {
			s.block(d.process, d.number, fmt.Sprintf("has the device %s (%d:%d) open%s", link, unix.Major(st.Rdev), unix.Minor(st.Rdev), name),
				"start the program so that it does not use the device")
			return nil
		}
	case unix.S_IFREG:
		// Huge pages have a mount of the kernel's own.
		if strings.HasPrefix(link, "/anon_hugepage") {
			return nil
		}
		if large(st) {
			s.blockLarge(d.process, d.number, link)
			return nil
		}
	}
	if !s.mounts[info.mount] {
		queue, err := isQueue(path)
		if err != nil {
			return err
		}
		if queue {
			s.block(d.process, d.number, fmt.Sprintf("has the POSIX message queue %s open", link), queueRemedy)
			return nil
		}
		s.block(d.process, d.number, fmt.Sprintf("has %s of the host open, which is outside of the pod", link),
			insideRemedy)
	}
	return nil
}

// large reports whether a file is deleted and too large to be put into the
// image.
func large(st unix.Stat_t) bool {
	const statBlock = 512 // stat(2): st_blocks counts these
	return st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink == 0 && st.Blocks*statBlock > ghostLimit
}

func (s *survey) blockLarge(p process, number int, name string) {
	s.block(p, number, fmt.Sprintf("uses %s, a deleted file of more than %d MiB", strings.TrimSuffix(name, " (deleted)"), ghostLimit>>20),
		"close it, or start the program so that it keeps the file's name")
}

// isQueue reports whether a file is on the file system of POSIX message queues.
func isQueue(path string) (bool, error) {
	const mqueueMagic = 0x19800202 // ipc/mqueue.c
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return false, err
	}
	return fs.Type == mqueueMagic, nil
}

// carriedDevice reports whether CRIU carries an open character device
// (criu/files.c, dump_chrdev), and if not, what more there is to say.
func (s *survey) carriedDevice(rdev uint64, info fdinfo) (string, bool) {
	const (
		memMajor, ttyMajor, ttyauxMajor, miscMajor = 1, 4, 5, 10
		ptsFirst, ptsLast                          = 136, 143
		tunMinor                                   = 200
	)
	major, minor := unix.Major(rdev), unix.Minor(rdev)
	switch {
	case major == memMajor:
		// null, zero, full, random, urandom, kmsg; not mem, kmem and port.
		return "", minor == 3 || minor == 5 || minor >= 7 && minor <= 9 || minor == 11
	case major == ttyMajor || major == ttyauxMajor || major >= ptsFirst && major <= ptsLast:
		return "", true
	case major == miscMajor && minor == tunMinor:
		// The network namespace is not part of the image, so neither is
		// the interface behind it.
		if name := info.other["iff"]; name != "" {
			return " with the interface " + name, false
		}
		return "", true
	}
	return "", false
}

// checkMappings looks at mapped memory that is no plain file.
func (s *survey) checkMappings(p process) error {
	f, err := os.Open(p.proc("maps"))
	if err != nil {
		return err
	}
	defer f.Close()
	said := make(map[string]bool)
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<10)
	for lines.Scan() {
		// address perms offset dev inode path (proc(5)).
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || said[fields[5]] {
			continue
		}
		path := fields[5]
		switch {
		case strings.HasPrefix(path, "anon_inode:"):
			kind := strings.Trim(strings.TrimPrefix(path, "anon_inode:"), "[]")
			remedy, ok := anonymousRemedies[kind]
			if !ok {
				remedy = "start the program without it"
			}
			s.block(p, -1, "has memory of "+kind+" mapped", remedy)
		case strings.HasPrefix(path, "/secretmem"):
			s.block(p, -1, "uses secret memory (memfd_secret)", "start the program without it")
		case strings.HasPrefix(path, "/dev/") && !strings.HasPrefix(path, "/dev/shm/"):
			var st unix.Stat_t
			if err := unix.Stat(p.proc("map_files", fields[0]), &st); err != nil {
				continue // unmapped meanwhile
			}
			if st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev != unix.Mkdev(1, 5) {
				s.block(p, -1, fmt.Sprintf("has memory of the device %s mapped", path), "start the program so that it does not use the device")
			}
		case strings.HasPrefix(path, "/") && fields[len(fields)-1] == "(deleted)":
			// Memory without a file looks the same, and has a size of its own.
			if strings.HasPrefix(path, "/memfd:") || strings.HasPrefix(path, "/SYSV") || strings.HasPrefix(path, "/anon_hugepage") {
				continue
			}
			var st unix.Stat_t
			if err := unix.Stat(p.proc("map_files", fields[0]), &st); err != nil {
				continue // unmapped meanwhile
			}
			if large(st) {
				s.blockLarge(p, -1, path)
			}
		default:
			continue
		}
		said[path] = true
	}
	return lines.Err()
}
