package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// maxPathBytes bounds the memory that the names of a layer's directories take.
const maxPathBytes = 256 << 20

// unpacker writes one layer's tar stream into a directory that nobody else can
// reach meanwhile, in the form that overlay wants of a lower directory.
//
// Every path is resolved by the kernel with the layer's directory as root, as
// if by a process in a chroot there, so it stays inside whatever links the
// stream has planted. Paths of an earlier entry are never trusted to still
// mean the same: nothing is kept open from one entry to the next.
type unpacker struct {
	root   int // descriptor of the directory
	limits Limits
	log    *slog.Logger
	// rootless: nothing is owned by anyone but the caller, devices are left
	// out and overlay's attributes are in the user namespace (mount option
	// userxattr), as in rootless podman.
	rootless bool

	entries   int
	bytes     int64
	pathBytes int64
	dirs      map[string]attributes
}

// attributes of a directory, which are set when nothing more is put into it.
type attributes struct {
	uid, gid int
	mode     uint32
	modTime  time.Time
}

// unpack writes the uncompressed tar stream r into dir, which must exist and
// be empty, and returns how many bytes the files hold. The caller bounds r, and
// removes dir after an error.
func unpack(ctx context.Context, r io.Reader, dir string, limits Limits, log *slog.Logger) (int64, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("opening %s: %w", dir, err)
	}
	u := &unpacker{
		root:     root,
		limits:   limits,
		log:      log,
		rootless: unix.Geteuid() != 0,
		dirs: map[string]attributes{
			// A layer need not have an entry for the root directory.
			".": {mode: 0o755, modTime: time.Unix(0, 0), uid: 0, gid: 0},
		},
	}
	err = u.run(tar.NewReader(contextReader{ctx, r}))
	return u.bytes, noSpace(errors.Join(err, unix.Close(root)))
}

func (u *unpacker) run(r *tar.Reader) error {
	for {
		h, err := r.Next()
		if err == io.EOF {
			return u.finishDirs()
		}
		if err != nil {
			return fmt.Errorf("%w: reading layer: %w", pod.ErrInvalid, err)
		}
		if h.Typeflag == tar.TypeXGlobalHeader {
			continue
		}
		if u.entries++; u.entries > u.limits.Entries {
			return fmt.Errorf("%w: the layer has more than %d entries", pod.ErrInvalid, u.limits.Entries)
		}
		// Of a sparse file the stream has less than Size.
		if h.Size > u.limits.LayerBytes-u.bytes {
			return fmt.Errorf("%w: the files of the layer have more than %d bytes", pod.ErrInvalid, u.limits.LayerBytes)
		}
		u.bytes += h.Size
		if err := u.entry(h, r); err != nil {
			return fmt.Errorf("unpacking %q: %w", h.Name, err)
		}
	}
}

func (u *unpacker) entry(h *tar.Header, content io.Reader) error {
	if slices.Contains(strings.Split(h.Name, "/"), "..") {
		return fmt.Errorf("%w: a name in a layer must not have '..' in it", pod.ErrInvalid)
	}
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return fmt.Errorf("%w: owner %d:%d is out of range", pod.ErrInvalid, h.Uid, h.Gid)
	}
	name := clean(h.Name)
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("%w: the root of a layer must be a directory", pod.ErrInvalid)
		}
		return u.directory(".", ".", u.root, h)
	}
	if first, _, _ := strings.Cut(name, "/"); strings.HasPrefix(first, whiteoutMeta) && first != whiteoutOpaque {
		return nil // AUFS's own
	}
	if u.rootless && (h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock) {
		u.log.Warn("device node left out: making one takes root", "name", h.Name)
		return nil
	}
	parent, err := u.makeParents(path.Dir(name))
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	base := path.Base(name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return u.whiteout(parent, base, path.Dir(name) == ".")
	}
	if h.Typeflag == tar.TypeLink {
		return u.hardLink(parent, base, h.Linkname)
	}
	opaque, err := u.clear(parent, base, h.Typeflag == tar.TypeDir)
	if err != nil {
		return err
	}
	if err := create(parent, base, h, content); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		if opaque {
			if err := u.setOpaque(parent, base); err != nil {
				return err
			}
		}
		return u.directory(name, base, parent, h)
	}
	return u.setAttributes(parent, base, h)
}

// resolve opens the directory called name, following links inside the layer.
func (u *unpacker) resolve(name string, flags uint64) (int, error) {
	how := &unix.OpenHow{
		Flags:   flags | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for {
		fd, err := unix.Openat2(u.root, name, how)
		// EAGAIN: the kernel could not rule out that a rename elsewhere on the
		// machine raced with a "..".
		if err != unix.EAGAIN && err != unix.EINTR {
			return fd, err
		}
	}
}

// makeParents opens the directory called name, making what is missing of it
// with the owner and mode that tar gives to a directory without an entry.
func (u *unpacker) makeParents(name string) (int, error) {
	fd, err := u.resolve(name, unix.O_PATH)
	if name == "." || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR) {
		switch err {
		case nil:
			return fd, nil
		case unix.ELOOP, unix.ENAMETOOLONG:
			err = invalid(err)
		}
		return -1, fmt.Errorf("opening directory %q: %w", name, err)
	}
	parent, err := u.makeParents(path.Dir(name))
	if err != nil {
		return -1, err
	}
	defer unix.Close(parent)
	base := path.Base(name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return -1, fmt.Errorf("%w: a directory can't have the name of a whiteout, %q", pod.ErrInvalid, base)
	}
	var st unix.Stat_t
	opaque := false
	switch err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil && isWhiteout(&st):
		// "a" deleted and made anew as a directory, which has no entry.
		opaque = true
		if err := unix.Unlinkat(parent, base, 0); err != nil {
			return -1, err
		}
	case err == nil:
		return -1, fmt.Errorf("%w: %q is used as a directory, but is a file or a link that leads nowhere", pod.ErrInvalid, name)
	case err != unix.ENOENT:
		return -1, fmt.Errorf("looking up %q: %w", name, err)
	}
	if err := unix.Mkdirat(parent, base, 0o755); err != nil {
		return -1, fmt.Errorf("making directory %q: %w", name, err)
	}
	if opaque {
		if err := u.setOpaque(parent, base); err != nil {
			return -1, err
		}
	}
	if err := u.remember(name, attributes{mode: 0o755, modTime: time.Unix(0, 0)}); err != nil {
		return -1, err
	}
	return u.resolve(name, unix.O_PATH)
}

// clear makes room for a new base in parent. A directory stays if the new one
// is a directory too. It reports whether the new one, being a directory,
// must hide a directory of the layers below.
func (u *unpacker) clear(parent int, base string, forDir bool) (opaque bool, err error) {
	var st unix.Stat_t
	err = unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == unix.ENOENT:
		return false, nil
	case err != nil:
		return false, fmt.Errorf("looking it up: %w", err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return forDir && isWhiteout(&st), unix.Unlinkat(parent, base, 0)
	case forDir:
		return false, nil
	}
	return false, removeAllAt(parent, base)
}

// directory takes note of what a directory, base in parent, gets in the end.
func (u *unpacker) directory(name, base string, parent int, h *tar.Header) error {
	if err := u.setXattrs(parent, base, h); err != nil {
		return err
	}
	return u.remember(name, attributes{uid: h.Uid, gid: h.Gid, mode: uint32(h.Mode) & 0o7777, modTime: h.ModTime})
}

func (u *unpacker) remember(name string, a attributes) error {
	if _, known := u.dirs[name]; !known {
		if u.pathBytes += int64(len(name)); u.pathBytes > maxPathBytes {
			return fmt.Errorf("%w: the names of the layer's directories have more than %d bytes", pod.ErrInvalid, maxPathBytes)
		}
	}
	u.dirs[name] = a
	return nil
}

// finishDirs sets the attributes of directories, the innermost first: putting
// something into a directory changes its time, and a directory may not be
// writable by its owner.
func (u *unpacker) finishDirs() error {
	names := slices.Sorted(maps.Keys(u.dirs))
	for _, name := range slices.Backward(names) {
		fd, err := u.resolve(name, unix.O_RDONLY|unix.O_NOFOLLOW)
		if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
			continue // a later entry replaced it
		}
		if err != nil {
			return fmt.Errorf("opening directory %q: %w", name, err)
		}
		err = u.finishDir(fd, u.dirs[name])
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return fmt.Errorf("setting the attributes of directory %q: %w", name, err)
		}
	}
	return nil
}

func (u *unpacker) finishDir(fd int, a attributes) error {
	if !u.rootless {
		if err := unix.Fchown(fd, a.uid, a.gid); err != nil {
			return err
		}
	}
	if err := setTimes(fd, ".", a.modTime); err != nil {
		return err
	}
	if u.rootless {
		// What the caller could not enter it could not rename or delete.
		a.mode |= 0o700
	}
	return unix.Fchmod(fd, a.mode)
}
