package filesync

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hostileFrames are passes that a sink must refuse. Each begins in the root of
// the first pass of tree "tree", in which there are a symbolic link "out" to
// the parent directory, a FIFO "fifo" and a file "file" of 10 bytes.
var hostileFrames = map[string]func(e *encoder){
	"name dot dot":       func(e *encoder) { e.begin().string("..").send(frameMkdir) },
	"name dot":           func(e *encoder) { e.begin().string(".").send(frameRemove) },
	"name with slash":    func(e *encoder) { e.begin().string("../x").uint(1).bool(true).send(frameFile) },
	"name with zero":     func(e *encoder) { e.begin().string("a\x00b").send(frameMkdir) },
	"empty name":         func(e *encoder) { e.begin().string("").send(frameRemove) },
	"long name":          func(e *encoder) { e.begin().string(strings.Repeat("n", 256)).send(frameMkdir) },
	"absolute path":      func(e *encoder) { e.begin().string("/etc").send(frameDir) },
	"path dot dot":       func(e *encoder) { e.begin().string("a/../..").send(frameDir) },
	"path through link":  func(e *encoder) { e.begin().string("out").send(frameDir) },
	"path below link":    func(e *encoder) { e.begin().string("out/outside").send(frameDir) },
	"long path":          func(e *encoder) { e.begin().string(strings.Repeat("a/", 3000) + "a").send(frameDir) },
	"write through link": func(e *encoder) { e.begin().string("out").uint(1).bool(false).send(frameFile) },
	"write into fifo":    func(e *encoder) { e.begin().string("fifo").uint(1).bool(false).send(frameFile) },
	"link from outside":  func(e *encoder) { e.begin().string("l").string("../outside/secret").send(frameLink) },
	"link through link":  func(e *encoder) { e.begin().string("l").string("out/outside/secret").send(frameLink) },
	"link to itself":     func(e *encoder) { e.begin().string("file").string("file").send(frameLink) },
	"block device":       func(e *encoder) { e.begin().string("n").uint(unix.S_IFBLK).uint(0x100).send(frameNode) },
	"character device":   func(e *encoder) { e.begin().string("n").uint(unix.S_IFCHR).uint(0x103).send(frameNode) },
	"node of no type":    func(e *encoder) { e.begin().string("n").uint(unix.S_IFDIR).uint(0).send(frameNode) },
	"unknown tree":       func(e *encoder) { e.begin().string("other").bool(true).send(frameTree) },
	"tree twice":         func(e *encoder) { e.begin().string("tree").bool(true).send(frameTree) },
	"unknown frame":      func(e *encoder) { e.begin().string("x").send('?') },
	"content of nothing": func(e *encoder) { e.begin().uint(0).sendWith(frameData, []byte("x")) },
	"content past the end": func(e *encoder) {
		e.begin().string("file").uint(10).bool(false).send(frameFile)
		e.begin().uint(8).sendWith(frameData, []byte("xxx"))
	},
	"hole past the end": func(e *encoder) {
		e.begin().string("file").uint(10).bool(false).send(frameFile)
		e.begin().uint(8).uint(1<<64 - 4).send(frameHole)
	},
	"huge file":          func(e *encoder) { e.begin().string("h").uint(1 << 62).bool(true).send(frameFile) },
	"attribute name":     func(e *encoder) { e.begin().string("system.other").string("v").send(frameXattr) },
	"overlay origin":     func(e *encoder) { e.begin().string("trusted.overlay.origin").string("v").send(frameXattr) },
	"overlay redirect":   func(e *encoder) { e.begin().string("trusted.overlay.redirect").string("/root").send(frameXattr) },
	"overlay metacopy":   func(e *encoder) { e.begin().string("trusted.overlay.metacopy").string("").send(frameXattr) },
	"overlay opaqueness": func(e *encoder) { e.begin().string("trusted.overlay.opaque").string("x").send(frameXattr) },
	"host's attribute":   func(e *encoder) { e.begin().string("trusted.other").string("v").send(frameXattr) },
	"security label":     func(e *encoder) { e.begin().string("security.selinux").string("v").send(frameXattr) },
	"attribute size":     func(e *encoder) { e.begin().string("user.x").string(strings.Repeat("v", 65<<10)).send(frameXattr) },
	"attribute dangling": func(e *encoder) { e.begin().string("user.x").string("v").send(frameXattr) },
	"mode": func(e *encoder) {
		e.begin().string("file").uint(0o100644).uint(0).uint(0).int(0).uint(0).bool(false).send(frameMeta)
	},
	"owner": func(e *encoder) {
		e.begin().string("file").uint(0o644).uint(1<<32 - 1).uint(0).int(0).uint(0).bool(false).send(frameMeta)
	},
	"time": func(e *encoder) {
		e.begin().string("file").uint(0o644).uint(0).uint(0).int(0).uint(1e9).bool(false).send(frameMeta)
	},
	"meta of parent": func(e *encoder) {
		e.begin().string("..").uint(0o777).uint(0).uint(0).int(0).uint(0).bool(false).send(frameMeta)
	},
	"link target":    func(e *encoder) { e.begin().string("l").string("").send(frameSymlink) },
	"trailing bytes": func(e *encoder) { e.begin().string("d").uint(1).send(frameMkdir) },
	"short field":    func(e *encoder) { e.begin().uint(100).send(frameMkdir) },
	"too many entries": func(e *encoder) {
		for i := range 100 {
			e.begin().string("many").uint(uint64(i)).bool(true).send(frameFile)
		}
	},
	"too much content": func(e *encoder) {
		e.begin().string("big").uint(1 << 20).bool(true).send(frameFile)
		for range 40 {
			e.begin().uint(0).sendWith(frameData, make([]byte, blockSize))
		}
	},
}

// hostileStream is a pass with prepared entries, then what frames adds.
func hostileStream(frames func(e *encoder)) []byte {
	var b bytes.Buffer
	e := newEncoder(&b)
	e.begin().string("tree").bool(true).send(frameTree)
	e.begin().string("out").string("..").send(frameSymlink)
	e.begin().string("fifo").uint(unix.S_IFIFO).uint(0).send(frameNode)
	e.begin().string("file").uint(10).bool(true).send(frameFile)
	e.begin().string("file").uint(0o600).uint(uint64(os.Getuid())).uint(uint64(os.Getgid())).int(0).uint(0).bool(false).send(frameMeta)
	frames(e)
	if err := e.finish(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// cell is a directory that holds a sink's tree and a file outside of it.
type cell struct{ base, tree, secret string }

func newCell(t testing.TB) cell {
	t.Helper()
	base := t.TempDir()
	c := cell{base, filepath.Join(base, "tree"), filepath.Join(base, "outside", "secret")}
	for _, d := range []string{c.tree, filepath.Dir(c.secret)} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(c.secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	return c
}

func (c cell) outside(t testing.TB) map[string]string {
	t.Helper()
	lines := snapshot(t, c.base)
	for name := range lines {
		if strings.HasPrefix(name, "tree") {
			delete(lines, name)
		}
	}
	return lines
}

func (c cell) apply(stream []byte) error {
	sink := NewSink([]Tree{{Name: "tree", Path: c.tree}},
		Limits{Entries: 50, Bytes: 2 << 20, FileSize: 1 << 40}, slog.New(slog.DiscardHandler))
	_, err := sink.Apply(context.Background(), bytes.NewReader(stream))
	return err
}

func requireUnchanged(t testing.TB, before, after map[string]string) {
	t.Helper()
	for name, line := range before {
		if after[name] != line {
			t.Errorf("outside the tree %q changed:\n before %s\n after  %s", name, line, after[name])
		}
	}
	if len(after) != len(before) {
		t.Errorf("outside the tree there are %d names; want %d", len(after), len(before))
	}
}

func TestSinkRefuses(t *testing.T) {
	for name, frames := range hostileFrames {
		t.Run(name, func(t *testing.T) {
			c := newCell(t)
			before := c.outside(t)
			err := c.apply(hostileStream(frames))
			if err == nil {
				t.Error("the pass was applied")
			}
			var errno unix.Errno
			if !errors.Is(err, ErrStream) && !errors.Is(err, ErrLimit) && !errors.As(err, &errno) {
				t.Errorf("error %v wraps neither ErrStream, ErrLimit nor a system call's", err)
			}
			requireUnchanged(t, before, c.outside(t))
		})
	}
}

func TestSinkRefusesDamage(t *testing.T) {
	good := hostileStream(func(*encoder) {})
	if err := newCell(t).apply(good); err != nil {
		t.Fatal("undamaged:", err)
	}
	for i := range good {
		if err := newCell(t).apply(good[:i]); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut after %d bytes: error %v; want unexpected EOF", i, err)
		}
		bad := bytes.Clone(good)
		bad[i] ^= 0x04
		if err := newCell(t).apply(bad); err == nil {
			t.Fatalf("byte %d damaged: no error", i)
		}
	}
	err := newCell(t).apply([]byte("poddfs\x00\x02"))
	if !errors.Is(err, ErrStream) || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("another version: error %v", err)
	}
}

func TestSinkStaysFailed(t *testing.T) {
	sink := NewSink([]Tree{{Name: "tree", Path: t.TempDir()}}, Limits{}, slog.New(slog.DiscardHandler))
	if _, err := sink.Apply(context.Background(), strings.NewReader("nonsense")); !errors.Is(err, ErrStream) {
		t.Fatal(err)
	}
	if _, err := sink.Apply(context.Background(), bytes.NewReader(hostileStream(func(*encoder) {}))); !errors.Is(err, ErrStream) {
		t.Errorf("after a failed pass: error %v", err)
	}
}

// FuzzApply requires that no stream makes a sink panic, hang or touch anything
// outside its tree.
func FuzzApply(f *testing.F) {
	for _, frames := range hostileFrames {
		f.Add(hostileStream(frames))
	}
	src := f.TempDir()
	m := &mutator{root: src, rand: newRand(1), xattrs: true}
	m.run(f, 300)
	source := NewSource([]Tree{{Name: "tree", Path: src}}, slog.New(slog.DiscardHandler))
	var stream bytes.Buffer
	if _, err := source.Sync(context.Background(), &stream, true); err != nil {
		f.Fatal(err)
	}
	f.Add(stream.Bytes())
	f.Fuzz(func(t *testing.T, stream []byte) {
		c := newCell(t)
		before := c.outside(t)
		if err := c.apply(stream); err != nil {
			t.Log(err)
		}
		// The tree's own root may have become unreadable to others, not gone.
		requireUnchanged(t, before, c.outside(t))
		if _, err := os.Lstat(c.tree); err != nil {
			t.Error(err)
		}
	})
}
