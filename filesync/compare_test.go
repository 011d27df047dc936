package filesync

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// snapshot describes everything under root that must be carried, one line a
// name: metadata, content, holes, attributes and which names are one file.
func snapshot(t testing.TB, root string) map[string]string {
	t.Helper()
	lines := map[string]string{}
	first := map[id]string{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("stat of %q: %w", path, err)
		}
		line := fmt.Sprintf("mode %o owner %d:%d mtime %d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			key := id{uint64(st.Dev), st.Ino}
			if first[key] == "" {
				first[key] = rel
			}
			// Not the number of links: overlayfs keeps some outside the tree.
			line += fmt.Sprintf(" file %q", first[key])
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			c, err := content(path)
			if err != nil {
				return err
			}
			line += c
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" -> %q", target)
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" device %d", st.Rdev)
		}
		xattrs, err := readXattrs(path, false)
		if err != nil {
			return err
		}
		for _, x := range xattrs {
			line += fmt.Sprintf(" %s=%q", x.name, x.value)
		}
		lines[rel] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return lines
}

// content describes a regular file's size, bytes and where its data are.
func content(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return "", err
	}
	s := fmt.Sprintf(" size %d sha256 %x data", size, h.Sum(nil)[:8])
	for off := int64(0); off < size; {
		data, err := seekData(int(f.Fd()), off)
		if err != nil {
			return "", err
		}
		if data < 0 {
			break
		}
		hole, err := unix.Seek(int(f.Fd()), data, unix.SEEK_HOLE)
		if err != nil {
			return "", err
		}
		s += fmt.Sprintf(" %d-%d", data, hole)
		off = hole
	}
	return s, nil
}

// requireEqual fails unless the two trees are the same in all that is carried.
func requireEqual(t testing.TB, want, got string) {
	t.Helper()
	a, b := snapshot(t, want), snapshot(t, got)
	differences := 0
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if a[name] != b[name] {
			t.Errorf("%q:\n source %s\n sink   %s", name, a[name], b[name])
			if differences++; differences > 20 {
				break
			}
		}
		delete(b, name)
	}
	for name := range b {
		t.Errorf("%q is only at the sink", name)
	}
	if t.Failed() {
		t.FailNow()
	}
}

// pair is a source and a sink of one tree.
type pair struct {
	t        testing.TB
	src, dst string
	source   *Source
	sink     *Sink
}

func newPair(t testing.TB, src, dst string, o Options) *pair {
	t.Helper()
	return &pair{
		t: t, src: src, dst: dst,
		source: NewSource([]Tree{{"tree", src, o}}, slog.New(slog.DiscardHandler)),
		sink:   NewSink([]Tree{{"tree", dst, o}}, Limits{}, slog.New(slog.DiscardHandler)),
	}
}

// pass carries one pass and checks that it was consumed exactly.
func (p *pair) pass(final bool) Stats {
	p.t.Helper()
	var stream bytes.Buffer
	stats, err := p.source.Sync(context.Background(), &stream, final)
	if err != nil {
		p.t.Fatal("sync:", err)
	}
	stream.WriteString("rest")
	if _, err := p.sink.Apply(context.Background(), &stream); err != nil {
		p.t.Fatal("apply:", err)
	}
	if stream.String() != "rest" {
		p.t.Fatalf("after a pass %d bytes are left in the stream; want 4", stream.Len())
	}
	return stats
}

// settle runs passes until the source trusts what it remembers, which takes
// as long as racyWindow, and the test tree's directory is on a disk.
func (p *pair) settle() {
	p.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		stats := p.pass(false)
		racy := false
		for _, x := range p.source.trees[0].inodes {
			racy = racy || x.racy
		}
		if !racy && stats.Changed == 0 {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatal("the source never settled")
		}
	}
}

// memoryDir returns a directory on a tmpfs, for a test tree.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", fmt.Sprintf("poddtest-filesync-%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// diskDir returns a directory on a disk: /tmp is a tmpfs on Debian 13.
func diskDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", fmt.Sprintf("poddtest-filesync-%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}
