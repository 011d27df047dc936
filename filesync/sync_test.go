package filesync

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }

func write(t testing.TB, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

func do(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// A rename, of a file or of a directory, and a new hard link send no content.
func TestMovedContentIsNotSentAgain(t *testing.T) {
	src, dst := dirs(t, diskDir(t))
	do(t, os.MkdirAll(filepath.Join(src, "dir/sub"), 0o755))
	write(t, filepath.Join(src, "file"), strings.Repeat("x", 300_000))
	write(t, filepath.Join(src, "dir/sub/file"), strings.Repeat("y", 300_000))
	p := newPair(t, src, dst, Options{})
	p.settle()
	do(t,
		os.Rename(filepath.Join(src, "file"), filepath.Join(src, "dir/renamed")),
		os.Rename(filepath.Join(src, "dir"), filepath.Join(src, "moved")),
		os.Link(filepath.Join(src, "moved/sub/file"), filepath.Join(src, "linked")))
	stats := p.pass(true)
	requireEqual(t, src, dst)
	if stats.Content != 0 {
		t.Errorf("%d bytes of content were sent for renamed and linked files", stats.Content)
	}
}

func TestOnlyChangedBlocksAreSent(t *testing.T) {
	for name, base := range map[string]string{"disk": diskDir(t), "memory": memoryDir(t)} {
		src, dst := dirs(t, base)
		path := filepath.Join(src, "big")
		write(t, path, strings.Repeat("0123456789abcdef", 1<<16))
		p := newPair(t, src, dst, Options{})
		p.pass(false)
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		do(t, err)
		_, err = f.WriteAt([]byte("changed"), 500_000)
		do(t, err, f.Close())
		stats := p.pass(true)
		requireEqual(t, src, dst)
		if stats.Content != blockSize {
			t.Errorf("%s: %d bytes of content were sent for seven changed; want %d", name, stats.Content, blockSize)
		}
	}
}

// An unchanged tree on a disk is not read again once it is trusted.
func TestUnchangedIsNotRead(t *testing.T) {
	src, dst := dirs(t, diskDir(t))
	m := &mutator{root: src, rand: newRand(7), xattrs: true}
	m.run(t, 500)
	p := newPair(t, src, dst, Options{})
	p.settle()
	stats := p.pass(true)
	if stats.Examined != 0 || stats.Changed != 0 || stats.Removed != 0 {
		t.Errorf("an unchanged tree: %+v", stats)
	}
	if stats.Bytes > 64 {
		t.Errorf("an unchanged tree takes %d bytes of stream", stats.Bytes)
	}
}

// Whatever a pass does to a tree touches it, and nothing else does.
func TestTouched(t *testing.T) {
	src, dst := dirs(t, diskDir(t))
	p := newPair(t, src, dst, Options{})
	if p.pass(false); !p.sink.Touched("tree") {
		t.Error("the first pass has not touched the tree")
	}
	at := func(name string) string { return filepath.Join(src, name) }
	for name, change := range map[string]func() error{
		"a directory":   func() error { return os.Mkdir(at("dir"), 0o700) },
		"its mode":      func() error { return os.Chmod(src, 0o711) },
		"a file":        func() error { return os.WriteFile(at("file"), nil, 0o600) },
		"its attribute": func() error { return unix.Setxattr(src, "user.x", []byte("y"), 0) },
	} {
		p.settle()
		if p.pass(false); p.sink.Touched("tree") {
			t.Errorf("before %s: a pass without changes has touched the tree", name)
		}
		do(t, change())
		if p.pass(false); !p.sink.Touched("tree") {
			t.Errorf("%s: the pass has not touched the tree", name)
		}
	}
	p.settle()
	do(t, os.Remove(at("file")))
	if p.pass(false); !p.sink.Touched("tree") || !p.sink.Touched("another") {
		t.Error("a removal has not touched the tree")
	}
}

func TestFirstPassReplacesWhatIsThere(t *testing.T) {
	src, dst := dirs(t, diskDir(t))
	do(t,
		os.MkdirAll(filepath.Join(src, "both/below"), 0o755),
		os.Mkdir(filepath.Join(src, "dir"), 0o755),
		os.MkdirAll(filepath.Join(dst, "both/stale/deep"), 0o755),
		os.MkdirAll(filepath.Join(dst, "file/stale"), 0o755),
		os.Mkdir(filepath.Join(dst, "gone"), 0o755),
		os.Symlink("/", filepath.Join(dst, "gone/root")))
	write(t, filepath.Join(src, "file"), "source")
	write(t, filepath.Join(dst, "dir"), "stale")
	write(t, filepath.Join(dst, "both/stale/deep/file"), "stale")
	kept, err := os.Open(filepath.Join(dst, "both"))
	do(t, err)
	defer kept.Close()
	p := newPair(t, src, dst, Options{})
	p.pass(true)
	requireEqual(t, src, dst)
	a, err := kept.Stat()
	do(t, err)
	b, err := os.Stat(filepath.Join(dst, "both"))
	do(t, err)
	if !os.SameFile(a, b) {
		t.Error("a directory that is at both ends was replaced")
	}
}

func TestSeveralTreesAndSingleEntry(t *testing.T) {
	base := diskDir(t)
	src, dst := dirs(t, base)
	for _, d := range []string{"upper", "volume"} {
		do(t, os.Mkdir(filepath.Join(src, d), 0o755), os.Mkdir(filepath.Join(dst, d), 0o700))
	}
	write(t, filepath.Join(src, "upper/file"), "in the upper")
	write(t, filepath.Join(src, "volume/carried"), "carried")
	write(t, filepath.Join(src, "volume/other"), "not carried")
	write(t, filepath.Join(dst, "volume/mine"), "stays")
	trees := func(base string) []Tree {
		return []Tree{
			{Name: "upper", Path: filepath.Join(base, "upper")},
			{Name: "volume", Path: filepath.Join(base, "volume"), Options: Options{Entry: "carried"}},
		}
	}
	log := slog.New(slog.DiscardHandler)
	source, sink := NewSource(trees(src), log), NewSink(trees(dst), Limits{}, log)
	for _, final := range []bool{false, true} {
		var stream bytes.Buffer
		_, err := source.Sync(context.Background(), &stream, final)
		do(t, err)
		_, err = sink.Apply(context.Background(), &stream)
		do(t, err)
		write(t, filepath.Join(src, "volume/carried"), "changed")
	}
	requireEqual(t, filepath.Join(src, "upper"), filepath.Join(dst, "upper"))
	got := snapshot(t, filepath.Join(dst, "volume"))
	if len(got) != 3 || got["mine"] == "" || got["carried"] == "" {
		t.Errorf("the volume has %v", got)
	}
	if st, err := os.Stat(filepath.Join(dst, "volume")); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the volume's directory: %v, %v; want mode 0700", st.Mode(), err)
	}
}

// meddler changes a file when the first bytes of the stream come by.
type meddler struct {
	path string
	done bool
}

func (m *meddler) Write(b []byte) (int, error) {
	if !m.done {
		m.done = true
		if err := os.WriteFile(m.path, []byte("meddled with"), 0o644); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

func TestFinalPassNoticesChanges(t *testing.T) {
	for _, final := range []bool{false, true} {
		src := diskDir(t)
		path := filepath.Join(src, "file")
		write(t, path, strings.Repeat("x", 2<<20))
		source := NewSource([]Tree{{Name: "tree", Path: src}}, slog.New(slog.DiscardHandler))
		_, err := source.Sync(context.Background(), &meddler{path: path}, final)
		if final != errors.Is(err, ErrChanged) {
			t.Errorf("a change during a pass, final %v: error %v", final, err)
		}
		if _, err2 := source.Sync(context.Background(), io.Discard, final); final && !errors.Is(err2, ErrChanged) {
			t.Errorf("after a failed pass: error %v", err2)
		}
	}
}

func TestSourceErrors(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	_, err := NewSource([]Tree{{Name: "tree", Path: "/nonexistent/tree"}}, log).Sync(context.Background(), io.Discard, false)
	if !errors.Is(err, unix.ENOENT) || !strings.Contains(err.Error(), `"/nonexistent/tree"`) {
		t.Errorf("a missing tree: error %v", err)
	}
	src := diskDir(t)
	write(t, filepath.Join(src, "file"), "x")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := NewSource([]Tree{{Name: "tree", Path: src}}, log).Sync(ctx, io.Discard, false); !errors.Is(err, context.Canceled) {
		t.Errorf("a cancelled pass: error %v", err)
	}
	r, w := io.Pipe()
	do(t, r.CloseWithError(io.ErrClosedPipe))
	if _, err := NewSource([]Tree{{Name: "tree", Path: src}}, log).Sync(context.Background(), w, false); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("a closed connection: error %v", err)
	}
}
