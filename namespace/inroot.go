package namespace

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// openIn opens rel beneath the directory dir with openat2(2). Where follow is
// set, symbolic links are followed as if dir were the root, else they fail
// with ELOOP. O_CLOEXEC is implied.
func openIn(dir *os.File, rel string, flags int, follow bool) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC)}
	if follow {
		how.Resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	} else {
		how.Resolve = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS
	}
	rel = strings.TrimPrefix(filepath.Clean("/"+rel), "/")
	if rel == "" {
		rel = "."
	}
	for {
		// RESOLVE_IN_ROOT fails with EAGAIN when anything on the machine was
		// renamed meanwhile.
		fd, err := unix.Openat2(int(dir.Fd()), rel, &how)
		if err == unix.EAGAIN || err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "openat2", Path: filepath.Join(dir.Name(), rel), Err: err}
		}
		return os.NewFile(uintptr(fd), filepath.Join(dir.Name(), rel)), nil
	}
}

// openRegular opens a regular file beneath dir for reading. What else may be
// there under its name is never opened: a FIFO would block, a device act.
func openRegular(dir *os.File, rel string, follow bool) (*os.File, error) {
	handle, err := openIn(dir, rel, unix.O_PATH, follow)
	if err != nil {
		return nil, err
	}
	defer handle.Close()
	st, err := fstat(handle)
	if err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, fmt.Errorf("%s is not a regular file", handle.Name())
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", handle.Fd()))
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", handle.Name(), err)
	}
	return f, nil
}

func openDir(path string) (*os.File, error) {
	return os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

func fstat(f *os.File) (*unix.Stat_t, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, &os.PathError{Op: "fstat", Path: f.Name(), Err: err}
	}
	return &st, nil
}

// lookup finds a path of the pod as the pod would, without opening it.
func (c *Container) lookup(path string) (*os.File, error) {
	root, err := openDir(c.paths.rootfs)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return openIn(root, path, unix.O_PATH, true)
}

// readFile reads a regular file of the pod's, following links as the pod would.
// It fails if the file has more than limit bytes.
func (c *Container) readFile(path string, limit int64) ([]byte, error) {
	root, err := openDir(c.paths.rootfs)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := openRegular(root, path, true)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return data, err
}
