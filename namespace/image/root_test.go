//go:build root

package image

import (
	"archive/tar"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
}

// capability is the value of security.capability for cap_net_raw=ep, as setcap
// writes it: revision 2 with the effective bit (linux/capability.h).
const capability = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

func TestUnpackAsRoot(t *testing.T) {
	needRoot(t)
	dir := mustUnpack(t,
		entry{name: "home/", uid: 1000, gid: 1001, mode: 0o2770},
		entry{name: "home/sudo", uid: 7, gid: 8, mode: 0o6755, pax: map[string]string{
			paxXattr + "security.capability": capability,
			paxXattr + "trusted.secret":      "x",
			paxXattr + "security.selinux":    "x",
		}},
		entry{name: "home/link", typ: tar.TypeSymlink, link: "/etc/shadow", uid: 9, gid: 10},
		entry{name: "dev/null", typ: tar.TypeChar, mode: 0o666, major: 1, minor: 3},
		entry{name: "dev/loop0", typ: tar.TypeBlock, mode: 0o660, major: 7, gid: 6},
	)
	for path, want := range map[string]unix.Stat_t{
		"home":      {Mode: unix.S_IFDIR | 0o2770, Uid: 1000, Gid: 1001},
		"home/sudo": {Mode: unix.S_IFREG | 0o6755, Uid: 7, Gid: 8},
		"home/link": {Mode: unix.S_IFLNK | 0o777, Uid: 9, Gid: 10},
		"dev/null":  {Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3)},
		"dev/loop0": {Mode: unix.S_IFBLK | 0o660, Rdev: unix.Mkdev(7, 0), Gid: 6},
	} {
		got := lstat(t, filepath.Join(dir, path))
		if got.Mode != want.Mode || got.Uid != want.Uid || got.Gid != want.Gid || got.Rdev != want.Rdev {
			t.Errorf("%s has mode %o, owner %d:%d, device %x", path, got.Mode, got.Uid, got.Gid, got.Rdev)
		}
	}
	buf := make([]byte, 64)
	n, err := unix.Lgetxattr(filepath.Join(dir, "home/sudo"), "security.capability", buf)
	if err != nil || string(buf[:n]) != capability {
		t.Errorf("capability %x, %v", buf[:max(n, 0)], err)
	}
	for _, name := range []string{"trusted.secret", "security.selinux"} {
		if _, err := unix.Lgetxattr(filepath.Join(dir, "home/sudo"), name, buf); !errors.Is(err, unix.ENODATA) {
			t.Errorf("attribute %s: %v", name, err)
		}
	}
}

// TestOverlay mounts the layers of an image as a pod's root would be.
func TestOverlay(t *testing.T) {
	needRoot(t)
	s := openStore(t, Options{})
	img := mustImport(t, s, writeLayout(t, map[string]v1.Image{"": makeImage(t,
		makeLayer(t, types.OCILayer,
			entry{name: "etc/motd", content: "below"}, entry{name: "etc/gone"},
			entry{name: "var/old"}, entry{name: "opt/old"}, entry{name: "srv/", mode: 0o700}, entry{name: "srv/kept"}),
		makeLayer(t, types.OCILayer, entry{name: "etc/motd", content: "middle"}),
		makeZstdLayer(t,
			entry{name: "etc/motd", content: "above"}, entry{name: "etc/.wh.gone"},
			entry{name: "var/.wh..wh..opq"}, entry{name: "var/new"},
			entry{name: ".wh.opt"}, entry{name: "opt/new"},
			entry{name: "srv/", mode: 0o711}))}), "x")
	mnt := filepath.Join(t.TempDir(), "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("overlay", mnt, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(img.Layers, ":")); err != nil {
		t.Fatalf("mounting overlay: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
		}
	})
	wantContent(t, filepath.Join(mnt, "etc/motd"), "above")
	for path, want := range map[string]bool{
		"etc/gone": false, "var/old": false, "var/new": true, "opt/old": false, "opt/new": true, "srv/kept": true,
	} {
		if _, err := os.Lstat(filepath.Join(mnt, path)); (err == nil) != want {
			t.Errorf("%s: %v, want there = %v", path, err, want)
		}
	}
	if st := lstat(t, filepath.Join(mnt, "srv")); st.Mode&0o7777 != 0o711 {
		t.Errorf("srv has mode %o", st.Mode)
	}
}
