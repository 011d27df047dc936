package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/pod"
)

var quiet = slog.New(slog.DiscardHandler)

// entry is one entry of a layer made for a test.
type entry struct {
	name    string
	typ     byte // 0 means a directory if name ends in "/", else a file
	mode    int64
	link    string
	content string
	pax     map[string]string
	uid     int
	gid     int
	time    time.Time
	major   int64
	minor   int64
}

var testTime = time.Unix(1_600_000_000, 0)

func makeTar(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.name, Typeflag: e.typ, Mode: e.mode, Linkname: e.link, Size: int64(len(e.content)),
			PAXRecords: e.pax, Uid: os.Geteuid(), Gid: os.Getegid(), ModTime: e.time,
			Devmajor: e.major, Devminor: e.minor, Format: tar.FormatPAX,
		}
		if e.uid != 0 || e.gid != 0 {
			h.Uid, h.Gid = e.uid, e.gid
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.name, "/") {
				h.Typeflag = tar.TypeDir
			}
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		if h.ModTime.IsZero() {
			h.ModTime = testTime
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatalf("making tar entry %q: %v", e.name, err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// unpackTest unpacks entries into the "layer" of a new directory and returns
// the path of it.
func unpackTest(t testing.TB, entries ...entry) (string, error) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layer")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := removeTree(dir); err != nil {
			t.Error(err)
		}
	})
	_, err := unpack(context.Background(), bytes.NewReader(makeTar(t, entries...)), dir, DefaultLimits, quiet)
	return dir, err
}

func mustUnpack(t testing.TB, entries ...entry) string {
	t.Helper()
	dir, err := unpackTest(t, entries...)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func lstat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("lstat %s: %v", path, err)
	}
	return st
}

func wantContent(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s contains %q, want %q", path, got, want)
	}
}

func wantOpaque(t testing.TB, path string, want bool) {
	t.Helper()
	name := "trusted.overlay.opaque"
	if os.Geteuid() != 0 {
		name = "user.overlay.opaque"
	}
	buf := make([]byte, 8)
	n, err := unix.Lgetxattr(path, name, buf)
	if got := err == nil && string(buf[:n]) == "y"; got != want {
		t.Errorf("%s opaque = %v (%v), want %v", path, got, err, want)
	}
}

func wantWhiteout(t testing.TB, path string) {
	t.Helper()
	if st := lstat(t, path); !isWhiteout(&st) {
		t.Errorf("%s is no whiteout: mode %o, device %d", path, st.Mode, st.Rdev)
	}
}

func TestUnpackKinds(t *testing.T) {
	dirTime, fileTime := time.Unix(1_500_000_000, 123456789), time.Unix(1_400_000_000, 987654321)
	dir := mustUnpack(t,
		entry{name: "./", mode: 0o751},
		entry{name: "bin/", mode: 0o555, time: dirTime, pax: map[string]string{paxXattr + "user.dir": "d"}},
		entry{name: "bin/tool", mode: 0o4755, content: "tool", time: fileTime, pax: map[string]string{paxXattr + "user.note": "a\x00b"}},
		entry{name: "bin/tool2", typ: tar.TypeLink, link: "bin/tool"},
		entry{name: "bin/tool3", typ: tar.TypeSymlink, link: "../../../../etc/passwd", time: fileTime},
		entry{name: "bin/link2", typ: tar.TypeLink, link: "/bin/tool3"},
		entry{name: "run/fifo", typ: tar.TypeFifo, mode: 0o620},
		entry{name: "empty"},
		entry{name: strings.Repeat("long/", 60) + "file", content: "deep"},
	)
	if st := lstat(t, dir); st.Mode&0o7777 != 0o751 {
		t.Errorf("root has mode %o", st.Mode)
	}
	bin := lstat(t, filepath.Join(dir, "bin"))
	wantMode := uint32(0o555)
	if os.Geteuid() != 0 {
		wantMode = 0o755
	}
	if bin.Mode&0o7777 != wantMode || bin.Mtim.Nano() != dirTime.UnixNano() {
		t.Errorf("bin has mode %o and time %v", bin.Mode, bin.Mtim)
	}
	tool := lstat(t, filepath.Join(dir, "bin/tool"))
	if tool.Mode&0o7777 != 0o4755 || tool.Mtim.Nano() != fileTime.UnixNano() || tool.Nlink != 2 {
		t.Errorf("tool has mode %o, time %v, %d links", tool.Mode, tool.Mtim, tool.Nlink)
	}
	if st := lstat(t, filepath.Join(dir, "bin/tool2")); st.Ino != tool.Ino {
		t.Error("tool2 is not a hard link to tool")
	}
	link := lstat(t, filepath.Join(dir, "bin/tool3"))
	if link.Nlink != 2 || link.Mtim.Nano() != fileTime.UnixNano() {
		t.Errorf("symbolic link has %d links, time %v", link.Nlink, link.Mtim)
	}
	if got, err := os.Readlink(filepath.Join(dir, "bin/tool3")); err != nil || got != "../../../../etc/passwd" {
		t.Errorf("symbolic link leads to %q, %v", got, err)
	}
	if st := lstat(t, filepath.Join(dir, "run/fifo")); st.Mode != unix.S_IFIFO|0o620 {
		t.Errorf("FIFO has mode %o", st.Mode)
	}
	if st := lstat(t, filepath.Join(dir, "run")); st.Mode != unix.S_IFDIR|0o755 {
		t.Errorf("directory without an entry has mode %o", st.Mode)
	}
	wantContent(t, filepath.Join(dir, strings.Repeat("long/", 60), "file"), "deep")
	for path, attr := range map[string][2]string{"bin": {"user.dir", "d"}, "bin/tool": {"user.note", "a\x00b"}} {
		buf := make([]byte, 8)
		n, err := unix.Lgetxattr(filepath.Join(dir, path), attr[0], buf)
		if err != nil || string(buf[:n]) != attr[1] {
			t.Errorf("%s: %s = %q, %v", path, attr[0], buf[:max(n, 0)], err)
		}
	}
}

func TestUnpackOverwrites(t *testing.T) {
	dir := mustUnpack(t,
		entry{name: "a/b/c", content: "old"},
		entry{name: "a", content: "a is a file now"},
		entry{name: "d", content: "file"},
		entry{name: "d/", mode: 0o700},
		entry{name: "d/x", content: "kept"},
		entry{name: "d/", mode: 0o711},
		entry{name: "l", typ: tar.TypeSymlink, link: "d"},
		entry{name: "l", content: "not through the link"},
		entry{name: "m", typ: tar.TypeSymlink, link: "d"},
		entry{name: "m/"},
		entry{name: "h", content: "h"},
		entry{name: "h", typ: tar.TypeLink, link: "h"},
	)
	wantContent(t, filepath.Join(dir, "a"), "a is a file now")
	wantContent(t, filepath.Join(dir, "d/x"), "kept")
	wantContent(t, filepath.Join(dir, "l"), "not through the link")
	wantContent(t, filepath.Join(dir, "h"), "h")
	if st := lstat(t, filepath.Join(dir, "d")); st.Mode&0o7777 != 0o711 {
		t.Errorf("d has mode %o", st.Mode)
	}
	if st := lstat(t, filepath.Join(dir, "m")); st.Mode&unix.S_IFMT != unix.S_IFDIR {
		t.Errorf("m has mode %o", st.Mode)
	}
}

func TestUnpackSparse(t *testing.T) {
	content := strings.Repeat("x", 5000) + strings.Repeat("\x00", 8<<20) + "end"
	dir := mustUnpack(t, entry{name: "f", content: content}, entry{name: "z", content: strings.Repeat("\x00", 1<<20)})
	wantContent(t, filepath.Join(dir, "f"), content)
	wantContent(t, filepath.Join(dir, "z"), strings.Repeat("\x00", 1<<20))
	if st := lstat(t, filepath.Join(dir, "f")); st.Blocks*512 > 1<<20 {
		t.Errorf("file of %d bytes takes %d on disk", st.Size, st.Blocks*512)
	}
}

func TestUnpackWhiteouts(t *testing.T) {
	dir := mustUnpack(t,
		entry{name: "etc/.wh.gone"},
		entry{name: "etc/.wh.gone"},
		entry{name: "var/"}, entry{name: "var/.wh..wh..opq"}, entry{name: "var/new", content: "new"},
		// Deleted and made anew, in every order.
		entry{name: ".wh.file1"}, entry{name: "file1", content: "1"},
		entry{name: "file2", content: "2"}, entry{name: ".wh.file2"},
		entry{name: ".wh.dir1"}, entry{name: "dir1/"}, entry{name: "dir1/x"},
		entry{name: "dir2/"}, entry{name: "dir2/x"}, entry{name: ".wh.dir2"},
		entry{name: ".wh.dir3"}, entry{name: "dir3/x"},
		// AUFS's own.
		entry{name: ".wh..wh.plnk/"}, entry{name: ".wh..wh.plnk/1.2"}, entry{name: "var/.wh..wh.aufs"},
	)
	wantWhiteout(t, filepath.Join(dir, "etc/gone"))
	wantOpaque(t, filepath.Join(dir, "etc"), false)
	wantOpaque(t, filepath.Join(dir, "var"), true)
	wantContent(t, filepath.Join(dir, "var/new"), "new")
	wantContent(t, filepath.Join(dir, "file1"), "1")
	wantContent(t, filepath.Join(dir, "file2"), "2")
	for _, name := range []string{"dir1", "dir2", "dir3"} {
		wantOpaque(t, filepath.Join(dir, name), true)
		if _, err := os.Lstat(filepath.Join(dir, name, "x")); err != nil {
			t.Error(err)
		}
	}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if strings.HasPrefix(d.Name(), ".wh.") {
			t.Errorf("%s was left in the layer", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestUnpackFollowsLinksInside(t *testing.T) {
	dir := mustUnpack(t,
		entry{name: "usr/bin/"},
		entry{name: "bin", typ: tar.TypeSymlink, link: "usr/bin"},
		entry{name: "abs", typ: tar.TypeSymlink, link: "/usr/bin"},
		entry{name: "up", typ: tar.TypeSymlink, link: "../../../usr/bin"},
		entry{name: "bin/a", content: "a"},
		entry{name: "abs/b", content: "b"},
		entry{name: "up/c", content: "c"},
		entry{name: "h", typ: tar.TypeLink, link: "abs/b"},
	)
	for name, want := range map[string]string{"usr/bin/a": "a", "usr/bin/b": "b", "usr/bin/c": "c", "h": "b"} {
		wantContent(t, filepath.Join(dir, name), want)
	}
}

func TestUnpackLimits(t *testing.T) {
	for name, test := range map[string]struct {
		limits  Limits
		entries []entry
		want    string
	}{
		"entries": {Limits{Entries: 2}, []entry{{name: "a"}, {name: "b"}, {name: "c"}}, "more than 2 entries"},
		"bytes":   {Limits{LayerBytes: 10}, []entry{{name: "a", content: "123456"}, {name: "b", content: "123456"}}, "more than 10 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			data := makeTar(t, test.entries...)
			_, err := unpack(context.Background(), bytes.NewReader(data), t.TempDir(), test.limits.withDefaults(), quiet)
			if !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

func TestUnpackCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := unpack(ctx, bytes.NewReader(makeTar(t, entry{name: "a"})), t.TempDir(), DefaultLimits, quiet)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
}
