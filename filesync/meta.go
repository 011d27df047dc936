package filesync

import (
	"fmt"
	"math"
	"strings"

	"golang.org/x/sys/unix"
)

// meta is a meta frame.
type meta struct {
	mode, uid, gid uint64
	sec            int64
	nsec           uint64
	keep           bool // the extended attributes as they are
}

func (m meta) valid() bool {
	// The highest uid and gid mean "as it is" to chown(2).
	return m.mode <= 0o7777 && m.uid < math.MaxUint32 && m.gid < math.MaxUint32 && m.nsec < 1e9
}

func (a *applier) xattr(name, value string) error {
	if len(name) > maxName || strings.IndexByte(name, 0) >= 0 || !carriedXattr(name) {
		return fmt.Errorf("%w: extended attribute %q is not allowed", ErrStream, name)
	}
	if name == overlayOpaque && value != "y" {
		return fmt.Errorf("%w: extended attribute %q is %q", ErrStream, name, value)
	}
	if len(value) > maxXattrValue {
		return fmt.Errorf("%w: extended attribute %q of %d bytes; at most %d are allowed", ErrStream, name, len(value), maxXattrValue)
	}
	if a.xattrBytes += len(name) + len(value); a.xattrBytes > maxXattrs {
		return fmt.Errorf("%w: more than %d bytes of extended attributes of one file", ErrLimit, maxXattrs)
	}
	a.xattrs = append(a.xattrs, xattr{name, []byte(value)})
	return nil
}

// meta sets the metadata of name, or of the selected directory, in the one
// order in which no call undoes another: chown drops set-id bits and file
// capabilities, an ACL changes the mode, and everything but utimes leaves the
// times to be set last.
func (a *applier) meta(name string, m meta) error {
	xattrs := a.xattrs
	a.xattrs, a.xattrBytes = nil, 0
	if !m.valid() || m.keep && len(xattrs) > 0 {
		return fmt.Errorf("%w: malformed metadata of %q", ErrStream, a.join(name))
	}
	entry := name
	if name == "" {
		if a.dirPath == "" && a.t.Entry != "" {
			return fmt.Errorf("%w: metadata of the root of tree %q, which is %q alone", ErrStream, a.t.Name, a.t.Entry)
		}
		entry = "."
	} else if err := a.checkName(name); err != nil {
		return err
	}

	fd := a.file
	if a.file < 0 || a.fileName != name {
		var err error
		fd, err = ignoringEINTR(func() (int, error) {
			return unix.Openat(a.dir, entry, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		if err != nil {
			return a.failed("opening", name, err)
		}
		defer unix.Close(fd)
	}
	defer a.closeFile()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return a.failed("stat of", name, err)
	}
	if uint64(st.Uid) != m.uid || uint64(st.Gid) != m.gid {
		if err := unix.Fchownat(fd, "", int(m.uid), int(m.gid), unix.AT_EMPTY_PATH); err != nil {
			return a.failed("changing the owner of", name, err)
		}
	}
	magic := fdPath(fd, "")
	if !m.keep {
		if err := setXattrs(magic, xattrs); err != nil {
			return a.failed("metadata of", name, err)
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(magic, uint32(m.mode)); err != nil {
			return a.failed("changing the mode of", name, err)
		}
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Sec: m.sec, Nsec: int64(m.nsec)}}
	if err := unix.UtimesNanoAt(a.dir, entry, times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return a.failed("setting the time of", name, err)
	}
	return nil
}
