package image

import (
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// Names in a layer that delete something of the layers below (OCI image
// specification, layer.md, "Whiteouts"; they come from AUFS).
const (
	whiteoutPrefix = ".wh."
	// whiteoutOpaque deletes everything in its directory.
	whiteoutOpaque = ".wh..wh..opq"
	// whiteoutMeta introduces AUFS's own files, which mean nothing here.
	whiteoutMeta = ".wh..wh."
)

// isWhiteout reports whether st is overlay's form of a whiteout: a character
// device 0:0.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// whiteout puts overlay's form of the whiteout called base into parent. It
// hides what the layers below have and nothing of this layer, whichever of
// them the stream has first.
func (u *unpacker) whiteout(parent int, base string, atRoot bool) error {
	switch {
	case base == whiteoutOpaque && atRoot:
		// Overlay does not look for the attribute on the root of a layer.
		return fmt.Errorf("%w: the layer deletes all layers below it", pod.ErrInvalid)
	case base == whiteoutOpaque:
		return u.setOpaque(parent, ".")
	case strings.HasPrefix(base, whiteoutMeta):
		return nil
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("%w: whiteout of %q", pod.ErrInvalid, name)
	}
	var st unix.Stat_t
	err := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == unix.ENOENT:
		return wrap("making whiteout", unix.Mknodat(parent, name, unix.S_IFCHR, 0))
	case err != nil:
		return fmt.Errorf("looking up %q: %w", name, err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return u.setOpaque(parent, name)
	}
	return nil // a file of this layer hides what is below by itself
}

// setOpaque makes the directory base in parent hide that of the layers below
// (Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
func (u *unpacker) setOpaque(parent int, base string) error {
	name := "trusted.overlay.opaque"
	if u.rootless {
		name = "user.overlay.opaque"
	}
	return wrap("making directory opaque", unix.Lsetxattr(procPath(parent, base), name, []byte("y"), 0))
}
