//go:build root

package filesync

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mountOverlay mounts an overlay as pods have it, with a fresh work directory.
func mountOverlay(t *testing.T, lower, upper, base string) string {
	t.Helper()
	work, merged := filepath.Join(base, "work"), filepath.Join(base, "merged")
	do(t, os.Mkdir(work, 0o755), os.Mkdir(merged, 0o755))
	options := "lowerdir=" + lower + ",upperdir=" + upper + ",workdir=" + work + ",index=on,nfs_export=on"
	if err := unix.Mount("overlay", merged, "overlay", 0, options); err != nil {
		t.Fatalf("mounting overlay %s: %v", options, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(merged, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return merged
}

// The upper layer of a mounted overlay is carried to one with another lower
// layer of the same content, and the merged trees are equal.
func TestRootOverlayUpper(t *testing.T) {
	requireRoot(t)
	base := diskDir(t)
	src, dst := dirs(t, base)
	lowerOf := func(base string) string {
		lower := filepath.Join(base, "lower")
		do(t, os.MkdirAll(filepath.Join(lower, "opaque/below"), 0o755), os.MkdirAll(filepath.Join(lower, "dir"), 0o755))
		for _, name := range []string{"deleted", "appended", "mapped", "replaced", "opaque/hidden", "dir/file"} {
			write(t, filepath.Join(lower, name), strings.Repeat("lower "+name+"\n", 5000))
		}
		return lower
	}
	upper, upper2 := filepath.Join(src, "upper"), filepath.Join(dst, "upper")
	do(t, os.Mkdir(upper, 0o755), os.Mkdir(upper2, 0o755))
	merged := mountOverlay(t, lowerOf(src), upper, src)
	m := func(name string) string { return filepath.Join(merged, name) }

	p := newPair(t, upper, upper2, Options{})
	p.pass(false)
	do(t, os.Remove(m("deleted")), os.RemoveAll(m("opaque")), os.Mkdir(m("opaque"), 0o755))
	write(t, m("opaque/new"), "new")
	write(t, m("replaced~"), "replaced")
	do(t, os.Rename(m("replaced~"), m("replaced")), os.Link(m("opaque/new"), m("dir/linked")))
	f, err := os.OpenFile(m("mapped"), os.O_RDWR, 0)
	do(t, err)
	defer f.Close()
	shared, err := unix.Mmap(int(f.Fd()), 0, 50_000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	do(t, err)
	defer unix.Munmap(shared)
	copy(shared[40_000:], "stored before a pass")
	p.settle()
	copy(shared[40_000:], "stored after a pass!")
	p.pass(true)
	requireEqual(t, upper, upper2)

	var whiteout unix.Stat_t
	do(t, unix.Lstat(filepath.Join(upper2, "deleted"), &whiteout))
	if !statOf(&whiteout).whiteout() {
		t.Errorf("the deleted name has mode %o", whiteout.Mode)
	}
	merged2 := mountOverlay(t, lowerOf(dst), upper2, dst)
	for name := range snapshot(t, merged) {
		want, err1 := os.ReadFile(m(name))
		got, err2 := os.ReadFile(filepath.Join(merged2, name))
		if (err1 == nil) != (err2 == nil) || !bytes.Equal(want, got) {
			t.Errorf("%q differs between the merged trees (%v, %v)", name, err1, err2)
		}
	}
	if a, b := len(snapshot(t, merged)), len(snapshot(t, merged2)); a != b {
		t.Errorf("%d names merged at the source, %d at the sink", a, b)
	}
}

// Owners, set-id bits, file capabilities and ACLs are each undone by setting
// another; all must arrive, also when only the content changes afterwards.
func TestRootMetadata(t *testing.T) {
	requireRoot(t)
	src, dst := dirs(t, diskDir(t))
	path := filepath.Join(src, "dir/file")
	do(t, os.Mkdir(filepath.Join(src, "dir"), 0o755))
	// struct vfs_ns_cap_data, revision 2: cap_net_bind_service+ep.
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	// acl(5) as xattr, version 2: user::rw-, user:7:rwx, group::r--, mask::rwx, other::---.
	acl := "\x02\x00\x00\x00" +
		"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x07\x00\x07\x00\x00\x00" + "\x04\x00\x04\x00\xff\xff\xff\xff" +
		"\x10\x00\x07\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	// A default ACL is inherited by what the sink creates below.
	do(t, unix.Setxattr(filepath.Join(src, "dir"), "system.posix_acl_default", []byte(acl), 0))
	write(t, path, "content")
	write(t, filepath.Join(src, "dir/plain"), "no ACL of its own")
	do(t,
		unix.Removexattr(filepath.Join(src, "dir/plain"), "system.posix_acl_access"),
		os.Chmod(filepath.Join(src, "dir/plain"), 0o600),
		os.Chown(path, 1234, 4321),
		unix.Setxattr(path, "security.capability", []byte(capability), 0),
		unix.Setxattr(path, "system.posix_acl_access", []byte(acl), 0),
		unix.Chmod(path, 0o6775),
		os.Symlink("/anywhere", filepath.Join(src, "link")),
		os.Lchown(filepath.Join(src, "link"), 5, 6))
	for _, name := range []string{
		"trusted.overlay.origin", "trusted.overlay.uuid", "trusted.overlay.nlink", "trusted.overlay.impure",
		"trusted.overlay.redirect", "trusted.overlay.metacopy", "trusted.other",
	} {
		do(t, unix.Setxattr(path, name, []byte("bound"), 0))
	}
	p := newPair(t, src, dst, Options{})
	p.pass(false)
	requireEqual(t, src, dst)
	names := make([]byte, 4096)
	n, err := unix.Listxattr(filepath.Join(dst, "dir/file"), names)
	do(t, err)
	if got := string(names[:n]); !strings.Contains(got, "security.capability") || strings.Contains(got, "trusted.") {
		t.Errorf("the sink's file has attributes %q", got)
	}
	// Through a mapping, which leaves everything but the content alone.
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	do(t, err)
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 7, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	do(t, err)
	defer unix.Munmap(m)
	copy(m, "CONTENT")
	p.pass(true)
	requireEqual(t, src, dst)
}

func TestRootDevices(t *testing.T) {
	requireRoot(t)
	src, dst := dirs(t, memoryDir(t))
	do(t,
		unix.Mknod(filepath.Join(src, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))),
		unix.Mknod(filepath.Join(src, "tty"), unix.S_IFCHR|0o666, int(unix.Mkdev(5, 0))))
	p := newPair(t, src, dst, Options{Devices: true})
	p.pass(false)
	requireEqual(t, src, dst)
	// The same number as another device must not be changed in place.
	do(t, os.Remove(filepath.Join(src, "null")), unix.Mknod(filepath.Join(src, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	p.pass(true)
	requireEqual(t, src, dst)

	source := NewSource([]Tree{{Name: "tree", Path: src}}, slog.New(slog.DiscardHandler))
	if _, err := source.Sync(context.Background(), new(bytes.Buffer), false); !errors.Is(err, ErrUnsupported) {
		t.Errorf("devices where none are allowed: error %v", err)
	}
}

// Where devices are allowed, those of the host are not.
func TestRootHostDevices(t *testing.T) {
	requireRoot(t)
	for name, node := range map[string]struct {
		format       uint32
		major, minor uint32
	}{
		"memory":  {unix.S_IFCHR, 1, 1},
		"log":     {unix.S_IFCHR, 1, 11},
		"console": {unix.S_IFCHR, 5, 1},
		"disk":    {unix.S_IFBLK, 8, 0},
		"null":    {unix.S_IFBLK, 1, 3},
	} {
		src, dst := dirs(t, memoryDir(t))
		rdev := unix.Mkdev(node.major, node.minor)
		do(t, unix.Mknod(filepath.Join(src, name), node.format|0o600, int(rdev)))
		tree := []Tree{{Name: "tree", Path: src, Options: Options{Devices: true}}}
		if _, err := NewSource(tree, slog.New(slog.DiscardHandler)).Sync(context.Background(), new(bytes.Buffer), false); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s at the source: error %v", name, err)
		}
		tree[0].Path = dst
		var stream bytes.Buffer
		e := newEncoder(&stream)
		e.begin().string("tree").bool(true).send(frameTree)
		e.begin().string(name).uint(uint64(node.format)).uint(rdev).send(frameNode)
		do(t, e.finish())
		if _, err := NewSink(tree, Limits{}, slog.New(slog.DiscardHandler)).Apply(context.Background(), &stream); !errors.Is(err, ErrStream) {
			t.Errorf("%s at the sink: error %v", name, err)
		}
	}
}

// A mount in a tree is an error at either end, not silently left out, carried
// or cleared.
func TestRootMountInTree(t *testing.T) {
	requireRoot(t)
	src, dst := dirs(t, diskDir(t))
	mount := func(base string) {
		do(t, os.Mkdir(filepath.Join(base, "mnt"), 0o755), unix.Mount("tmpfs", filepath.Join(base, "mnt"), "tmpfs", 0, "size=64k"))
		t.Cleanup(func() {
			if err := unix.Unmount(filepath.Join(base, "mnt"), unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		write(t, filepath.Join(base, "mnt/file"), "x")
	}
	log := slog.New(slog.DiscardHandler)
	mount(dst)
	var stream bytes.Buffer
	_, err := NewSource([]Tree{{Name: "tree", Path: src}}, log).Sync(context.Background(), &stream, false)
	do(t, err)
	if _, err := NewSink([]Tree{{Name: "tree", Path: dst}}, Limits{}, log).Apply(context.Background(), &stream); !errors.Is(err, unix.EXDEV) {
		t.Errorf("a mount at the sink: error %v", err)
	}
	if _, err := os.Stat(filepath.Join(dst, "mnt/file")); err != nil {
		t.Error(err)
	}
	mount(src)
	if _, err := NewSource([]Tree{{Name: "tree", Path: src}}, log).Sync(context.Background(), &stream, false); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a mount at the source: error %v", err)
	}
}
