//go:build root

package podd

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMountImagesDir starts podd twice where /run is a tmpfs that is too small
// for the images of moves.
func TestMountImagesDir(t *testing.T) {
	run := t.TempDir()
	if err := unix.Mount("poddtest", run, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(run, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d := &Daemon{settings: settings{Config: Config{RunDir: run}}}
	if err := os.Mkdir(d.imagesDir(), 0o700); err != nil {
		t.Fatal(err)
	}
	var first, second, outside unix.Stat_t
	for _, st := range []*unix.Stat_t{&first, &second} {
		if err := d.mountImagesDir(); err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat(d.imagesDir(), st); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Stat(run, &outside); err != nil {
		t.Fatal(err)
	}
	if first.Dev == outside.Dev {
		t.Error("images are kept in the tmpfs of /run")
	}
	if second.Dev != first.Dev {
		t.Error("a second start mounts again")
	}
}
