package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// TestUnpackHostile checks that nothing gets out of the layer and that what is
// refused is refused as invalid.
func TestUnpackHostile(t *testing.T) {
	for name, test := range map[string]struct {
		entries []entry
		refused bool
	}{
		"dot dot":                {[]entry{{name: "../canary", content: "x"}}, true},
		"dot dot inside":         {[]entry{{name: "a/../../canary", content: "x"}}, true},
		"absolute":               {[]entry{{name: "/canary", content: "x"}}, false},
		"link to parent":         {[]entry{{name: "l", typ: tar.TypeSymlink, link: ".."}, {name: "l/canary", content: "x"}}, false},
		"link to absolute":       {[]entry{{name: "l", typ: tar.TypeSymlink, link: "CANARYDIR"}, {name: "l/canary", content: "x"}}, true},
		"link over link":         {[]entry{{name: "a", typ: tar.TypeSymlink, link: "."}, {name: "a/b", typ: tar.TypeSymlink, link: ".."}, {name: "b/canary", content: "x"}}, false},
		"link itself":            {[]entry{{name: "canary", typ: tar.TypeSymlink, link: "../canary"}, {name: "canary", content: "x"}}, false},
		"link, then mode":        {[]entry{{name: "l", typ: tar.TypeSymlink, link: "../canary", mode: 0o777}}, false},
		"hard link out":          {[]entry{{name: "h", typ: tar.TypeLink, link: "../canary"}}, true},
		"hard link absolute":     {[]entry{{name: "h", typ: tar.TypeLink, link: "CANARYDIR/canary"}}, true},
		"hard link through link": {[]entry{{name: "l", typ: tar.TypeSymlink, link: ".."}, {name: "h", typ: tar.TypeLink, link: "l/canary"}}, true},
		"hard link to directory": {[]entry{{name: "d/"}, {name: "h", typ: tar.TypeLink, link: "d"}}, true},
		"whiteout of parent":     {[]entry{{name: ".wh..."}}, true},
		"whiteout of self":       {[]entry{{name: ".wh.."}}, true},
		"whiteout of nothing":    {[]entry{{name: ".wh."}}, true},
		"whiteout as directory":  {[]entry{{name: "a/.wh.b/c"}}, true},
		"whiteout through link":  {[]entry{{name: "l", typ: tar.TypeSymlink, link: ".."}, {name: "l/.wh.canary"}}, false},
		"opaque root":            {[]entry{{name: ".wh..wh..opq"}}, true},
		"opaque through link":    {[]entry{{name: "l", typ: tar.TypeSymlink, link: ".."}, {name: "l/.wh..wh..opq"}}, false},
		"directory through link": {[]entry{{name: "l", typ: tar.TypeSymlink, link: "../.."}, {name: "l/", mode: 0o777}}, false},
		"link loop":              {[]entry{{name: "l", typ: tar.TypeSymlink, link: "l"}, {name: "l/x"}}, true},
		"file as directory":      {[]entry{{name: "f"}, {name: "f/x"}}, true},
		"proc":                   {[]entry{{name: "l", typ: tar.TypeSymlink, link: "/proc/self/cwd"}, {name: "l/x"}}, true},
		"root is a file":         {[]entry{{name: "/", typ: tar.TypeSymlink, link: "/etc"}}, true},
		"redirect attribute":     {[]entry{{name: "d/", pax: map[string]string{paxXattr + "trusted.overlay.redirect": "/../.."}}}, false},
		"device 0:0":             {[]entry{{name: "d", typ: tar.TypeChar}}, os.Geteuid() == 0},
		"owner out of range":     {[]entry{{name: "f", uid: math.MaxUint32}}, true},
		"link to nothing":        {[]entry{{name: "f", typ: tar.TypeSymlink}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "outer", "layer")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			canaryDir := filepath.Dir(dir)
			canary := filepath.Join(canaryDir, "canary")
			if err := os.WriteFile(canary, []byte("canary"), 0o600); err != nil {
				t.Fatal(err)
			}
			entries := slices.Clone(test.entries)
			for i := range entries {
				entries[i].link = strings.ReplaceAll(entries[i].link, "CANARYDIR", canaryDir)
			}
			before := snapshotOutside(t, dir)
			_, err := unpack(context.Background(), bytes.NewReader(makeTar(t, entries...)), dir, DefaultLimits, quiet)
			if test.refused != errors.Is(err, pod.ErrInvalid) || !test.refused && err != nil {
				t.Errorf("error %v, want refused = %v", err, test.refused)
			}
			if after := snapshotOutside(t, dir); after != before {
				t.Errorf("outside of the layer:\n%s\nwas\n%s", after, before)
			}
			checkNoOverlayAttributes(t, dir)
		})
	}
}

// snapshotOutside describes everything next to and above a layer in the two
// directories that the test made.
func snapshotOutside(t testing.TB, layer string) string {
	t.Helper()
	var b strings.Builder
	top := filepath.Dir(filepath.Dir(layer))
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == layer {
			return fs.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		b.WriteString(path + " " + info.Mode().String())
		if info.Mode().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			b.Write(data)
		}
		st := lstat(t, path)
		if info.Mode().IsRegular() && st.Nlink != 1 {
			t.Errorf("%s has %d links", path, st.Nlink)
		}
		n, err := unix.Llistxattr(path, make([]byte, 1024))
		if err == nil && n > 0 {
			t.Errorf("%s has extended attributes", path)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// checkNoOverlayAttributes checks that the stream could set none of overlay's
// attributes but the opaque one.
func checkNoOverlayAttributes(t testing.TB, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		buf := make([]byte, 64<<10)
		n, err := unix.Llistxattr(path, buf)
		if err != nil {
			return err
		}
		for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
			if strings.Contains(name, "overlay") && !strings.HasSuffix(name, "overlay.opaque") {
				t.Errorf("%s has the attribute %s", path, name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
