package filesync

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// replace makes name by create; if something is in the way it is removed.
func (a *applier) replace(operation, name string, create func() error) error {
	err := create()
	if errors.Is(err, fs.ErrExist) {
		if err := a.remove(name); err != nil {
			return err
		}
		err = create()
	}
	if err != nil {
		return a.failed(operation, name, err)
	}
	return nil
}

func (a *applier) mkdir(name string) error {
	err := unix.Mkdirat(a.dir, name, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err := unix.Fstatat(a.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return a.failed("stat of", name, err)
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return nil
		}
		if err := a.remove(name); err != nil {
			return err
		}
		err = unix.Mkdirat(a.dir, name, 0o700)
	}
	if err != nil {
		return a.failed("creating directory", name, err)
	}
	return nil
}

func (a *applier) openFile(name string, size uint64, create bool) error {
	if size > uint64(a.s.limits.FileSize) {
		return fmt.Errorf("%w: %q has %d bytes; at most %d are allowed", ErrLimit, a.join(name), size, a.s.limits.FileSize)
	}
	open := func(flags int) (err error) {
		a.file, err = ignoringEINTR(func() (int, error) {
			return unix.Openat(a.dir, name, flags|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
		})
		return err
	}
	if create {
		if err := a.replace("creating", name, func() error { return open(unix.O_CREAT | unix.O_EXCL) }); err != nil {
			return err
		}
	} else {
		// Opening a device would already do something.
		if err := a.checkRegular(name); err != nil {
			return err
		}
		if err := open(0); err != nil {
			return a.failed("opening", name, err)
		}
	}
	a.fileName, a.fileSize = name, int64(size)
	if _, err := ignoringEINTR(func() (int, error) { return 0, unix.Ftruncate(a.file, int64(size)) }); err != nil {
		return a.failed("setting the size of", name, err)
	}
	return nil
}

func (a *applier) checkRegular(name string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(a.dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return a.failed("stat of", name, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("%w: %q is not a regular file", ErrStream, a.join(name))
	}
	return nil
}

// inFile checks that a range lies in the open file.
func (a *applier) inFile(off, length uint64) error {
	if a.file < 0 {
		return fmt.Errorf("%w: content of no file", ErrStream)
	}
	if size := uint64(a.fileSize); off > size || length > size-off {
		return fmt.Errorf("%w: %d bytes at %d of %q, which has %d", ErrStream, length, off, a.join(a.fileName), size)
	}
	return nil
}

func (a *applier) data(off uint64, data []byte) error {
	if err := a.inFile(off, uint64(len(data))); err != nil {
		return err
	}
	if a.s.written += int64(len(data)); a.s.written > a.s.limits.Bytes {
		return fmt.Errorf("%w: more than %d bytes of content", ErrLimit, a.s.limits.Bytes)
	}
	if err := a.s.room.Add(a.root, int64(len(data)), 0); err != nil {
		return fmt.Errorf("%w: %w", ErrLimit, err)
	}
	a.stats.Content += int64(len(data))
	return a.pwrite(int64(off), data)
}

func (a *applier) pwrite(off int64, data []byte) error {
	for len(data) > 0 {
		n, err := ignoringEINTR(func() (int, error) { return unix.Pwrite(a.file, data, off) })
		if err != nil {
			return a.failed("writing", a.fileName, err)
		}
		data, off = data[n:], off+int64(n)
	}
	return nil
}

// hole makes a hole. On a file system without them zeros do, within the limit
// on content.
func (a *applier) hole(off, length uint64) error {
	if err := a.inFile(off, length); err != nil {
		return err
	}
	if length == 0 {
		return nil
	}
	punched := length
	if off+length == uint64(a.fileSize) {
		// Or the file's last block would be cleared and not freed.
		punched += blockSize
	}
	_, err := ignoringEINTR(func() (int, error) {
		return 0, unix.Fallocate(a.file, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(punched))
	})
	if !errors.Is(err, unix.EOPNOTSUPP) {
		if err != nil {
			return a.failed("making a hole in", a.fileName, err)
		}
		return nil
	}
	zeros := make([]byte, blockSize)
	for length > 0 {
		n := min(length, blockSize)
		if err := a.data(off, zeros[:n]); err != nil {
			return err
		}
		off, length = off+n, length-n
	}
	return nil
}

func (a *applier) symlink(name, target string) error {
	if target == "" || len(target) > maxPath || strings.IndexByte(target, 0) >= 0 {
		return fmt.Errorf("%w: %q as the target of a symbolic link", ErrStream, target)
	}
	return a.replace("creating symbolic link", name, func() error { return unix.Symlinkat(target, a.dir, name) })
}

func (a *applier) node(name string, format, rdev uint64) error {
	switch {
	case format == unix.S_IFIFO || format == unix.S_IFSOCK:
		rdev = 0
	case format == unix.S_IFCHR && rdev == 0: // overlay's whiteout
	case format == unix.S_IFCHR && a.t.Devices && containerDevice(rdev):
	default:
		return fmt.Errorf("%w: %q: a node of type %#o, device %d:%d, is not allowed in tree %q",
			ErrStream, a.join(name), format, unix.Major(rdev), unix.Minor(rdev), a.t.Name)
	}
	return a.replace("creating node", name, func() error {
		return unix.Mknodat(a.dir, name, uint32(format)|0o600, int(rdev))
	})
}

// containerDevice reports whether a character device is one of those that every
// container has (OCI runtime specification, "Default Devices"), or whose use the
// kernel leaves to everyone: null, zero, full, random, urandom, tty, ptmx. Others
// would be the host's.
func containerDevice(rdev uint64) bool {
	switch unix.Major(rdev) {
	case 1:
		minor := unix.Minor(rdev)
		return minor == 3 || minor == 5 || minor >= 7 && minor <= 9
	case 5:
		minor := unix.Minor(rdev)
		return minor == 0 || minor == 2
	}
	return false
}

func (a *applier) link(name, old string) error {
	if !validPath(old) {
		return fmt.Errorf("%w: %q is not a path", ErrStream, old)
	}
	if first, _, _ := strings.Cut(old, "/"); a.t.Entry != "" && first != a.t.Entry {
		return fmt.Errorf("%w: %q is outside tree %q", ErrStream, old, a.t.Name)
	}
	if old == a.join(name) {
		return fmt.Errorf("%w: %q as a link to itself", ErrStream, old)
	}
	dir, base := path.Split(old)
	fd, err := openBeneath(a.root, strings.TrimSuffix(dir, "/"), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return a.failed("linking to "+fmt.Sprintf("%q", old)+" as", name, err)
	}
	defer unix.Close(fd)
	return a.replace(fmt.Sprintf("linking to %q as", old), name, func() error {
		return unix.Linkat(fd, base, a.dir, name, 0)
	})
}

func (a *applier) remove(name string) error {
	if err := removeAll(a.dir, name); err != nil {
		return a.failed("removing", name, err)
	}
	return nil
}

// removeAll removes name and all below. It follows no link and fails on a
// mount.
func removeAll(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return err
	}
	fd, openErr := openBeneath(dir, name, unix.O_RDONLY|unix.O_DIRECTORY)
	if openErr != nil {
		if errors.Is(openErr, unix.ENOTDIR) || errors.Is(openErr, unix.ELOOP) {
			return err // EPERM was meant
		}
		return openErr
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAll(fd, n); err != nil {
			return fmt.Errorf("%q: %w", n, err)
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

func readNames(fd int) ([]string, error) {
	var names []string
	var d direntReader
	for {
		name, err := d.next(fd)
		if err != nil {
			return nil, fmt.Errorf("reading the directory: %w", err)
		}
		if name == nil {
			return names, nil
		}
		names = append(names, string(name))
	}
}

// collectStale notes what is below the directory dir, a path from the root.
func (a *applier) collectStale(dir string) error {
	fd, err := openBeneath(a.root, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return a.failed("opening directory", dir, err)
	}
	defer unix.Close(fd)
	names, err := readNames(fd)
	if err != nil {
		return a.failed("clearing", dir, err)
	}
	for _, name := range names {
		if dir == "" && a.t.Entry != "" && name != a.t.Entry {
			continue
		}
		p := path.Join(dir, name)
		a.t.stale[p] = struct{}{}
		if err := a.collectStale(p); err != nil {
			return err
		}
	}
	return nil
}

// clear removes what is stale, children before parents. What went with its
// parent meanwhile is gone already.
func (a *applier) clear() error {
	var paths []string
	for p := range a.t.stale {
		paths = append(paths, p)
	}
	a.t.stale = nil
	slices.Sort(paths)
	for _, p := range slices.Backward(paths) {
		dir, base := path.Split(p)
		fd, err := openBeneath(a.root, strings.TrimSuffix(dir, "/"), unix.O_RDONLY|unix.O_DIRECTORY)
		if err == nil {
			err = removeAll(fd, base)
			unix.Close(fd)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP) {
			return fmt.Errorf("removing %q of tree %q: %w", p, a.t.Name, err)
		}
	}
	return nil
}
