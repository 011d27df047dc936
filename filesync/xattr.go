package filesync

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

type xattr struct {
	name  string
	value []byte
}

// hostBoundXattrs are what overlayfs notes about the very file systems its
// layers are on. On another host they make the mount, or look-ups of file
// handles in it, fail with ESTALE; it makes new ones as it needs them.
var hostBoundXattrs = []string{
	"trusted.overlay.origin", "trusted.overlay.uuid", "trusted.overlay.nlink", "trusted.overlay.impure",
}

// carriedXattr reports whether an extended attribute is part of what is
// carried: those of the portable name spaces, less the host-bound ones.
func carriedXattr(name string) bool {
	if slices.Contains(hostBoundXattrs, name) {
		return false
	}
	switch name {
	case "system.posix_acl_access", "system.posix_acl_default":
		return true
	}
	for _, space := range []string{"user.", "trusted.", "security."} {
		if strings.HasPrefix(name, space) && len(name) > len(space) {
			return true
		}
	}
	return false
}

// listXattrs returns the names of path's carried attributes, sorted.
func listXattrs(path string, follow bool) ([]string, error) {
	list := unix.Llistxattr
	if follow {
		list = unix.Listxattr
	}
	var buf []byte
	for size := 1 << 10; ; size = 64 << 10 {
		buf = make([]byte, size)
		n, err := ignoringEINTR(func() (int, error) { return list(path, buf) })
		switch {
		case errors.Is(err, unix.ERANGE) && size < 64<<10:
			continue
		case errors.Is(err, unix.EOPNOTSUPP):
			return nil, nil
		case err != nil:
			return nil, err
		}
		buf = buf[:n]
		break
	}
	if len(buf) == 0 {
		return nil, nil
	}
	var names []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf), "\x00"), "\x00") {
		if carriedXattr(name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// readXattrs returns path's carried attributes, sorted by name. Only with
// follow is a link that is path's last element followed, as fdPath's must be.
func readXattrs(path string, follow bool) ([]xattr, error) {
	get := unix.Lgetxattr
	if follow {
		get = unix.Getxattr
	}
	names, err := listXattrs(path, follow)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	var xattrs []xattr
	total := 0
	buf := make([]byte, maxXattrValue)
	for _, name := range names {
		n, err := ignoringEINTR(func() (int, error) { return get(path, name, buf) })
		if errors.Is(err, unix.ENODATA) {
			continue // removed since it was listed
		}
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", name, err)
		}
		if total += len(name) + n; total > maxXattrs {
			return nil, fmt.Errorf("%w: more than %d bytes of extended attributes", ErrUnsupported, maxXattrs)
		}
		xattrs = append(xattrs, xattr{name, slices.Clone(buf[:n])})
	}
	return xattrs, nil
}

// hashXattrs returns the zero hash for no attributes.
func hashXattrs(xattrs []xattr, seed uint64) xxh3.Uint128 {
	if len(xattrs) == 0 {
		return xxh3.Uint128{}
	}
	var b []byte
	for _, x := range xattrs {
		b = binary.AppendUvarint(b, uint64(len(x.name)))
		b = append(b, x.name...)
		b = binary.AppendUvarint(b, uint64(len(x.value)))
		b = append(b, x.value...)
	}
	return xxh3.Hash128Seed(b, seed)
}

// setXattrs makes the carried attributes of the file that path, a magic link,
// leads to exactly these.
func setXattrs(path string, xattrs []xattr) error {
	buf := make([]byte, 0, 256)
	n, err := unix.Listxattr(path, nil)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("listing extended attributes: %w", err)
	}
	if n > 0 {
		buf = slices.Grow(buf, n)[:n]
		if n, err = unix.Listxattr(path, buf); err != nil {
			return fmt.Errorf("listing extended attributes: %w", err)
		}
		for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
			wanted := slices.ContainsFunc(xattrs, func(x xattr) bool { return x.name == name })
			if wanted || !carriedXattr(name) {
				continue
			}
			if err := unix.Removexattr(path, name); err != nil && !errors.Is(err, unix.ENODATA) {
				return fmt.Errorf("removing extended attribute %q: %w", name, err)
			}
		}
	}
	for _, x := range xattrs {
		if err := unix.Setxattr(path, x.name, x.value, 0); err != nil {
			return fmt.Errorf("setting extended attribute %q: %w", x.name, err)
		}
	}
	return nil
}
