package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// create makes base in parent, where nothing of the name is, unless the entry
// is a directory and so is base.
func create(parent int, base string, h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		if err := unix.Mkdirat(parent, base, 0o700); err != nil && err != unix.EEXIST {
			return fmt.Errorf("making directory: %w", err)
		}
		return nil
	case tar.TypeReg, tar.TypeGNUSparse:
		return createFile(parent, base, h.Size, content)
	case tar.TypeSymlink:
		if h.Linkname == "" {
			return fmt.Errorf("%w: symbolic link to nothing", pod.ErrInvalid)
		}
		return wrap("making symbolic link", unix.Symlinkat(h.Linkname, parent, base))
	case tar.TypeFifo:
		return wrap("making FIFO", unix.Mknodat(parent, base, unix.S_IFIFO|0o600, 0))
	case tar.TypeChar, tar.TypeBlock:
		return device(parent, base, h)
	}
	return fmt.Errorf("%w: tar entry of unknown type %q", pod.ErrInvalid, h.Typeflag)
}

func wrap(doing string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	return nil
}

// device makes a device node. As in podman an image may have any: whether a
// pod may open it is for its device cgroup to say.
func device(parent int, base string, h *tar.Header) error {
	mode := uint32(unix.S_IFCHR)
	if h.Typeflag == tar.TypeBlock {
		mode = unix.S_IFBLK
	}
	if h.Devmajor < 0 || h.Devmajor > 0xfff || h.Devminor < 0 || h.Devminor > 0xfffff {
		return fmt.Errorf("%w: device %d:%d is out of range", pod.ErrInvalid, h.Devmajor, h.Devminor)
	}
	if h.Devmajor == 0 && h.Devminor == 0 {
		return fmt.Errorf("%w: device 0:0, which overlay takes for a deleted file", pod.ErrInvalid)
	}
	dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	return wrap("making device node", unix.Mknodat(parent, base, mode|0o600, int(dev)))
}

func createFile(parent int, base string, size int64, content io.Reader) error {
	fd, err := unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("making file: %w", err)
	}
	f := os.NewFile(uintptr(fd), base)
	err = copySparse(f, size, content)
	return errors.Join(err, f.Close())
}

// hole is the unit in which runs of zeros become holes: a block of the usual
// file systems.
const hole = 4096

var zeros [hole]byte

// copySparse writes content, of size bytes, leaving out blocks of zeros.
func copySparse(f *os.File, size int64, content io.Reader) error {
	buf := make([]byte, 64*hole)
	offset := int64(0)
	for offset < size {
		n, err := io.ReadFull(content, buf[:min(int64(len(buf)), size-offset)])
		if err != nil {
			return fmt.Errorf("%w: reading content: %w", pod.ErrInvalid, err)
		}
		for start := 0; start < n; {
			end := start
			for end < n && !isZero(buf[end:min(end+hole, n)]) {
				end = min(end+hole, n)
			}
			if end > start {
				if _, err := f.WriteAt(buf[start:end], offset+int64(start)); err != nil {
					return err
				}
			}
			start = end + hole
		}
		offset += int64(n)
	}
	return f.Truncate(size)
}

func isZero(block []byte) bool { return bytes.Equal(block, zeros[:len(block)]) }

// hardLink makes base in parent another name of target.
func (u *unpacker) hardLink(parent int, base, target string) error {
	name := clean(target)
	dir, last := "", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		dir, last = name[:i], name[i+1:]
	}
	if dir == "" {
		dir = "."
	}
	from, err := u.resolve(dir, unix.O_PATH)
	if err != nil {
		return fmt.Errorf("%w: hard link to %q, which the layer does not have before it: %w", pod.ErrInvalid, target, err)
	}
	defer unix.Close(from)
	var st, old unix.Stat_t
	if err := unix.Fstatat(from, last, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%w: hard link to %q, which the layer does not have before it: %w", pod.ErrInvalid, target, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR || isWhiteout(&st) {
		return fmt.Errorf("%w: hard link to %q, which is no file", pod.ErrInvalid, target)
	}
	if unix.Fstatat(parent, base, &old, unix.AT_SYMLINK_NOFOLLOW) == nil && old.Ino == st.Ino {
		return nil
	}
	if _, err := u.clear(parent, base, false); err != nil {
		return err
	}
	return wrap("making hard link", unix.Linkat(from, last, parent, base, 0))
}

// setAttributes gives base in parent, which is no directory, the owner, mode,
// extended attributes and time of h. The order matters: a new owner clears
// set-id bits and capabilities, and everything changes the time.
func (u *unpacker) setAttributes(parent int, base string, h *tar.Header) error {
	if !u.rootless {
		if err := unix.Fchownat(parent, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("setting owner: %w", err)
		}
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(parent, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return fmt.Errorf("setting mode: %w", err)
		}
	}
	if err := u.setXattrs(parent, base, h); err != nil {
		return err
	}
	return setTimes(parent, base, h.ModTime)
}

func setTimes(parent int, base string, modTime time.Time) error {
	ts, err := unix.TimeToTimespec(modTime)
	if err != nil {
		return fmt.Errorf("%w: modification time %v is out of range", pod.ErrInvalid, modTime)
	}
	return wrap("setting time", unix.UtimesNanoAt(parent, base, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW))
}

// paxXattr introduces an extended attribute among the PAX records of an entry.
const paxXattr = "SCHILY.xattr."

// setXattrs sets the extended attributes that an image may have: user.* and
// file capabilities. All others belong to the host: trusted.overlay.* would
// let a layer redirect lookups, security.selinux and the like name policies
// that the host does not have.
func (u *unpacker) setXattrs(parent int, base string, h *tar.Header) error {
	for record, value := range h.PAXRecords {
		name, ok := strings.CutPrefix(record, paxXattr)
		if !ok {
			continue
		}
		switch {
		case name == "security.capability" && !u.rootless:
		case strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "user.overlay."):
		default:
			u.log.Debug("extended attribute left out", "name", h.Name, "attribute", name)
			continue
		}
		err := unix.Lsetxattr(procPath(parent, base), name, []byte(value), 0)
		if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) && strings.HasPrefix(name, "user.") {
			// The file system has none, or none on this type of file.
			u.log.Warn("extended attribute not kept", "name", h.Name, "attribute", name, "err", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("setting attribute %s: %w", name, err)
		}
	}
	return nil
}

// procPath names base in the directory of descriptor fd for system calls that
// have no *at form. The last component is not followed by those that don't.
func procPath(fd int, base string) string {
	return "/proc/self/fd/" + strconv.Itoa(fd) + "/" + base
}

// removeAllAt deletes base in parent with everything in it.
func removeAllAt(parent int, base string) error {
	root, err := os.OpenRoot("/proc/self/fd/" + strconv.Itoa(parent))
	if err != nil {
		return err
	}
	return errors.Join(root.RemoveAll(base), root.Close())
}
