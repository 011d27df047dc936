package filesync

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// openBeneath opens path, relative to the directory root and "" for root
// itself, without following a symbolic link anywhere and without leaving root
// or its mount (EXDEV), whatever somebody else does to the tree meanwhile.
func openBeneath(root int, path string, flags int) (int, error) {
	if path == "" {
		path = "."
	}
	return ignoringEINTR(func() (int, error) {
		return unix.Openat2(root, path, &unix.OpenHow{
			Flags:   uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW),
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
		})
	})
}

// ignoringEINTR repeats a call that a signal interrupted, as the os package
// does for its own: Go's preemption signals can hit any slow system call.
func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// fdPath names an open descriptor, or an entry of an open directory, for the
// system calls that take only paths. The link is magic: following it leads to
// the very file, not to a name that may have changed hands.
func fdPath(fd int, name string) string {
	p := "/proc/self/fd/" + strconv.Itoa(fd)
	if name != "" {
		p += "/" + name
	}
	return p
}

// direntReader reads the names in a directory without sorting or allocating.
type direntReader struct {
	buf  [32 << 10]byte
	rest []byte
}

// next returns the next name of fd other than "." and "..", nil at the end.
// The name is valid until the next call.
func (d *direntReader) next(fd int) ([]byte, error) {
	for {
		if len(d.rest) == 0 {
			n, err := ignoringEINTR(func() (int, error) { return unix.Getdents(fd, d.buf[:]) })
			if n <= 0 || err != nil {
				return nil, err
			}
			d.rest = d.buf[:n]
		}
		// struct linux_dirent64: ino (8), off (8), reclen (2), type (1), name.
		const nameOffset = 19
		length := int(binary.NativeEndian.Uint16(d.rest[16:]))
		name := d.rest[nameOffset:length]
		d.rest = d.rest[length:]
		if i := bytes.IndexByte(name, 0); i >= 0 {
			name = name[:i]
		}
		if string(name) != "." && string(name) != ".." {
			return name, nil
		}
	}
}

func (d *direntReader) reset() { d.rest = nil }

// validName reports whether name is one path element.
func validName(name string) bool {
	if name == "" || name == "." || name == ".." || len(name) > maxName {
		return false
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return false
		}
	}
	return true
}

// validPath reports whether path is one or more path elements, slash between.
func validPath(path string) bool {
	if len(path) > maxPath {
		return false
	}
	start := 0
	for i := 0; i <= len(path); i++ {
		if i == len(path) || path[i] == '/' {
			if !validName(path[start:i]) {
				return false
			}
			start = i + 1
		}
	}
	return true
}

// trustsCtime reports whether fd's file system moves ctime when a page of a
// shared mapping becomes writable (file_update_time in its page_mkwrite), so
// that an unchanged ctime proves unchanged content. Magic numbers are those of
// linux/magic.h. Anything else, tmpfs above all, is compared by content.
func trustsCtime(fd int) (bool, error) {
	var st unix.Statfs_t
	if _, err := ignoringEINTR(func() (int, error) { return 0, unix.Fstatfs(fd, &st) }); err != nil {
		return false, fmt.Errorf("statfs: %w", err)
	}
	switch int64(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC:
		return true, nil
	}
	return false, nil
}
