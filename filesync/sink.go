package filesync

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"podd/reserve"
)

// Sink applies passes to trees. It is used by one goroutine at a time.
//
// It trusts nothing in the stream: names are single path elements, paths are
// resolved beneath the tree's root without following any symbolic link, and
// only files that are already regular are opened. It does trust that nobody
// else changes its trees meanwhile.
type Sink struct {
	trees  map[string]*sinkTree
	limits Limits
	log    *slog.Logger
	// created and written count against the limits.
	created, written int64
	room             reserve.Meter
	err              error
}

type sinkTree struct {
	Tree
	// stale is what was there before the first pass and has not been named
	// since; nil before and after that pass.
	stale map[string]struct{}
	begun bool
	// touched says that the last pass had more than its name.
	touched bool
}

// NewSink returns a Sink for trees, whose roots must be there when a pass is
// applied. The first pass makes them equal to the source's: what is in them
// and not at the source is removed at its end, directories that are in both
// stay the same directories.
func NewSink(trees []Tree, limits Limits, log *slog.Logger) *Sink {
	s := &Sink{trees: map[string]*sinkTree{}, limits: limits.withDefaults(), log: log}
	for _, t := range trees {
		s.trees[t.Name] = &sinkTree{Tree: t}
	}
	return s
}

// Apply reads one pass from r, to its end and not further, and applies it. It
// reads in small steps: give it a buffered reader. Errors wrap ErrStream or
// ErrLimit where the stream is to blame. After an error the trees are
// incomplete and the Sink can't be used any more; the caller deletes them.
func (s *Sink) Apply(ctx context.Context, r io.Reader) (Stats, error) {
	if s.err != nil {
		return Stats{}, fmt.Errorf("after a failed pass: %w", s.err)
	}
	begin := time.Now()
	for _, t := range s.trees {
		t.touched = false
	}
	a := &applier{s: s, root: -1, dir: -1, file: -1}
	defer a.close()
	if err := a.run(ctx, r); err != nil {
		s.err = err
		return a.stats, err
	}
	a.stats.Duration = time.Since(begin)
	s.log.Debug("files applied", "stats", a.stats)
	return a.stats, nil
}

// Touched reports whether the last pass may have changed anything in a tree.
func (s *Sink) Touched(tree string) bool {
	t := s.trees[tree]
	return t == nil || t.touched || s.err != nil
}

// applier is the state of one pass.
type applier struct {
	s     *Sink
	stats Stats

	t       *sinkTree
	root    int    // descriptor of the tree's root
	dir     int    // of the selected directory; may be root
	dirPath string // relative to the root
	// The open regular file.
	file     int
	fileName string
	fileSize int64

	xattrs     []xattr
	xattrBytes int
}

func (a *applier) close() {
	a.closeFile()
	a.closeDir()
	if a.root >= 0 {
		unix.Close(a.root)
		a.root = -1
	}
}

func (a *applier) closeFile() {
	if a.file >= 0 {
		unix.Close(a.file)
		a.file = -1
	}
}

func (a *applier) closeDir() {
	if a.dir >= 0 && a.dir != a.root {
		unix.Close(a.dir)
	}
	a.dir = -1
}

func (a *applier) run(ctx context.Context, r io.Reader) error {
	d, err := newDecoder(r)
	if err != nil {
		return err
	}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		kind, f, err := d.next()
		if err != nil {
			return err
		}
		if kind == frameEnd {
			if err := d.end(f); err != nil {
				return err
			}
			if len(a.xattrs) > 0 {
				return fmt.Errorf("%w: extended attributes of nothing", ErrStream)
			}
			a.stats.Bytes = d.bytes
			return nil
		}
		if err := a.frame(kind, f); err != nil {
			return err
		}
	}
}

// frame takes one frame apart, checks it and applies it.
func (a *applier) frame(kind byte, f fields) error {
	if kind != frameTree && a.t == nil {
		return fmt.Errorf("%w: frame %q before any tree", ErrStream, kind)
	}
	if kind != frameTree {
		a.t.touched = true
	}
	switch kind {
	case frameTree:
		name, first := f.string(), f.bool()
		if err := f.end(kind); err != nil {
			return err
		}
		return a.selectTree(name, first)
	case frameDir:
		path := f.string()
		if err := f.end(kind); err != nil {
			return err
		}
		return a.selectDir(path)
	case frameData:
		off, data := f.uint(), f.bytes()
		if err := f.end(kind); err != nil {
			return err
		}
		return a.data(off, data)
	case frameHole:
		off, length := f.uint(), f.uint()
		if err := f.end(kind); err != nil {
			return err
		}
		return a.hole(off, length)
	case frameXattr:
		name, value := f.string(), f.string()
		if err := f.end(kind); err != nil {
			return err
		}
		return a.xattr(name, value)
	case frameMeta:
		name := f.string()
		m := meta{mode: f.uint(), uid: f.uint(), gid: f.uint(), sec: f.int(), nsec: f.uint(), keep: f.bool()}
		if err := f.end(kind); err != nil {
			return err
		}
		return a.meta(name, m)
	case frameClear:
		if err := f.end(kind); err != nil {
			return err
		}
		return a.clear()
	}
	return a.nameFrame(kind, f)
}

// nameFrame handles the frames that make or remove a name.
func (a *applier) nameFrame(kind byte, f fields) error {
	var do func(name string) error
	name := f.string()
	switch kind {
	case frameMkdir:
		do = a.mkdir
	case frameRemove:
		do = a.remove
	case frameFile:
		size, create := f.uint(), f.bool()
		do = func(name string) error { return a.openFile(name, size, create) }
	case frameSymlink:
		target := f.string()
		do = func(name string) error { return a.symlink(name, target) }
	case frameNode:
		format, rdev := f.uint(), f.uint()
		do = func(name string) error { return a.node(name, format, rdev) }
	case frameLink:
		path := f.string()
		do = func(name string) error { return a.link(name, path) }
	default:
		return fmt.Errorf("%w: unknown frame %q", ErrStream, kind)
	}
	if err := f.end(kind); err != nil {
		return err
	}
	if err := a.checkName(name); err != nil {
		return err
	}
	if kind != frameRemove {
		if a.s.created++; a.s.created > a.s.limits.Entries {
			return fmt.Errorf("%w: more than %d entries", ErrLimit, a.s.limits.Entries)
		}
		if err := a.s.room.Add(a.root, 0, 1); err != nil {
			return fmt.Errorf("%w: %w", ErrLimit, err)
		}
		delete(a.t.stale, a.join(name))
		a.stats.Changed++
	} else {
		a.stats.Removed++
	}
	a.closeFile()
	return do(name)
}

// checkName says whether name may be used in the selected directory.
func (a *applier) checkName(name string) error {
	if !validName(name) {
		return fmt.Errorf("%w: %q is not a file name", ErrStream, name)
	}
	if a.t.Entry != "" && a.dirPath == "" && name != a.t.Entry {
		return fmt.Errorf("%w: %q is outside tree %q, which is %q alone", ErrStream, name, a.t.Name, a.t.Entry)
	}
	return nil
}

func (a *applier) join(name string) string {
	if a.dirPath == "" {
		return name
	}
	return a.dirPath + "/" + name
}

// failed describes an error about name in the selected directory, "" being
// that directory.
func (a *applier) failed(operation, name string, err error) error {
	return fmt.Errorf("%s %q: %w", operation, filepath.Join(a.t.Path, a.dirPath, name), err)
}

func (a *applier) selectTree(name string, first bool) error {
	a.close()
	t := a.s.trees[name]
	if t == nil {
		return fmt.Errorf("%w: unknown tree %q", ErrStream, name)
	}
	if first == t.begun {
		return fmt.Errorf("%w: tree %q out of sequence", ErrStream, name)
	}
	a.t, a.dirPath = t, ""
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Open(t.Path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return fmt.Errorf("opening %q: %w", t.Path, err)
	}
	a.root, a.dir = fd, fd
	if first {
		t.begun = true
		t.stale = map[string]struct{}{}
		return a.collectStale("")
	}
	return nil
}

func (a *applier) selectDir(path string) error {
	if path != "" && !validPath(path) {
		return fmt.Errorf("%w: %q is not a path", ErrStream, path)
	}
	a.closeFile()
	a.closeDir()
	a.dirPath = path
	if path == "" {
		a.dir = a.root
		return nil
	}
	fd, err := openBeneath(a.root, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return a.failed("opening directory", "", err)
	}
	a.dir = fd
	return nil
}
