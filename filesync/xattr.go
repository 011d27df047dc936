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

// overlayOpaque marks a directory of a layer that hides those below. It is the one
// attribute of overlayfs that is part of what a pod did to its files.
const overlayOpaque = "trusted.overlay.opaque"

// fileCapability is what setcap(8) sets.
const fileCapability = "security.capability"

// carriedXattr reports whether an extended attribute is part of what is
// carried: what a pod may set itself, and overlayfs for it. In the name spaces
// trusted and security that is one each: what else is there belongs to the host,
// as labels of its security modules do, or would let whoever sends it choose
// which of the host's files a pod sees (trusted.overlay.redirect and .metacopy).
func carriedXattr(name string) bool {
	switch name {
	case "system.posix_acl_access", "system.posix_acl_default", fileCapability, overlayOpaque:
		return true
	}
	return len(name) > len(userSpace) && strings.HasPrefix(name, userSpace)
}

const userSpace = "user."

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
