package filesync

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// racyWindow is how much older than the beginning of its reading a ctime must
// be to be trusted. It covers the granularity of the kernel's coarse clock
// (10 ms at 100 Hz) and a task preempted, or a direct write in flight, between
// moving ctime and changing the content.
const racyWindow = 100 * time.Millisecond

// Source sends trees. It is used by one goroutine at a time.
type Source struct {
	trees  []*sourceTree
	log    *slog.Logger
	passes uint64
	// seed keeps a pod from making two blocks that hash alike.
	seed uint64
	err  error
}

type sourceTree struct {
	Tree
	root   *node
	inodes map[id]*inode
	// Of the running pass:
	fd        int
	dev       uint64
	byContent bool
}

// NewSource returns a Source of trees that has sent nothing. It takes no
// resources between passes but memory: some 400 bytes a name and 32 for every
// 64 KiB of content.
func NewSource(trees []Tree, log *slog.Logger) *Source {
	s := &Source{log: log, seed: rand.Uint64()}
	for _, t := range trees {
		root := &node{inode: &inode{}, children: map[string]*node{}}
		s.trees = append(s.trees, &sourceTree{Tree: t, root: root, inodes: map[id]*inode{}})
	}
	return s
}

// Sync writes one pass to w: the difference between the trees and what the
// passes before have sent. In a final pass nothing may change the trees; that
// something did is an error that wraps ErrChanged. Otherwise what changes or
// vanishes meanwhile is left to the next pass. Blocking in w ends only by w's
// own means; ctx is looked at between files. After an error the Source can't
// be used any more.
func (s *Source) Sync(ctx context.Context, w io.Writer, final bool) (Stats, error) {
	if s.err != nil {
		return Stats{}, fmt.Errorf("after a failed pass: %w", s.err)
	}
	begin := time.Now()
	s.passes++
	p := &pass{ctx: ctx, s: s, n: s.passes, final: final, e: newEncoder(w)}
	for _, t := range s.trees {
		if err := p.sync(t); err != nil {
			s.err = fmt.Errorf("sending tree %q: %w", t.Name, err)
			return p.stats, s.err
		}
	}
	if err := p.e.finish(); err != nil {
		s.err = err
		return p.stats, err
	}
	p.stats.Bytes = p.e.bytes
	p.stats.Duration = time.Since(begin)
	s.log.Debug("files sent", "pass", s.passes, "final", final, "stats", p.stats)
	return p.stats, nil
}

// errVanished means that an entry changed its nature or went away under a
// running pass. The next pass will see what became of it.
var errVanished = errors.New("vanished")

// pass is one run over the trees.
type pass struct {
	ctx   context.Context
	s     *Source
	e     *encoder
	n     uint64
	final bool
	stats Stats

	t   *sourceTree
	cwd *node // the directory selected at the sink
	// stack holds directories still to be read, sweeps those that may have
	// lost names, dirs those whose mtime must be set at the end.
	stack, sweeps, dirs []*node

	names direntReader
	block [blockSize]byte
}

func (p *pass) sync(t *sourceTree) error {
	fd, err := ignoringEINTR(func() (int, error) {
		return unix.Open(t.Path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return fmt.Errorf("opening %q: %w", t.Path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("stat of %q: %w", t.Path, err)
	}
	trusted, err := trustsCtime(fd)
	if err != nil {
		return fmt.Errorf("%q: %w", t.Path, err)
	}
	t.fd, t.dev, t.byContent = fd, uint64(st.Dev), !trusted
	p.t, p.cwd = t, t.root
	first := t.root.pass == 0
	t.root.pass = p.n
	p.e.begin().string(t.Name).bool(first).send(frameTree)

	p.stack = append(p.stack[:0], t.root)
	p.sweeps, p.dirs = nil, nil
	for len(p.stack) > 0 {
		d := p.stack[len(p.stack)-1]
		p.stack = p.stack[:len(p.stack)-1]
		err := p.readDir(d)
		if errors.Is(err, errVanished) {
			if d == t.root {
				return fmt.Errorf("reading %q: %w", t.Path, err)
			}
			d.pass = 0
			p.sweeps = append(p.sweeps, d.parent)
		} else if err != nil {
			return err
		}
	}
	p.sweep()
	if first {
		p.e.begin().send(frameClear)
	}
	// Children before parents: without CAP_DAC_OVERRIDE a parent's mode
	// could lock the sink out.
	for i := len(p.dirs) - 1; i >= 0; i-- {
		if d := p.dirs[i]; d == t.root || d.parent != nil {
			p.enter(d)
			p.sendMeta("", d.inode.stat, nil, true)
		}
	}
	return p.e.err
}

// sweep removes what the pass did not see. That comes after the walk so that
// a file that moved is still there to be linked to.
func (p *pass) sweep() {
	for _, d := range p.sweeps {
		if d != p.t.root && d.parent == nil {
			continue
		}
		for _, n := range d.children {
			if n.pass != p.n {
				p.remove(n)
			}
		}
	}
}

func (p *pass) remove(n *node) {
	p.enter(n.parent)
	p.touch(n.parent)
	p.e.begin().string(n.name).send(frameRemove)
	p.t.detach(n)
	p.stats.Removed++
}

// enter selects directory d at the sink.
func (p *pass) enter(d *node) {
	if p.cwd != d {
		p.e.begin().string(d.path()).send(frameDir)
		p.cwd = d
	}
}

// touch notes that the sink's mtime of d moves.
func (p *pass) touch(d *node) {
	if d.touched == p.n || d == p.t.root && p.t.Entry != "" {
		return
	}
	d.touched = p.n
	p.dirs = append(p.dirs, d)
}

// sendMeta sends metadata of name in the selected directory.
func (p *pass) sendMeta(name string, s stat, xattrs []xattr, keep bool) {
	for _, x := range xattrs {
		p.e.begin().string(x.name).string(string(x.value)).send(frameXattr)
	}
	p.e.begin().string(name).uint(uint64(s.mode & 07777)).uint(uint64(s.uid)).uint(uint64(s.gid)).
		int(s.mtime.Sec).uint(uint64(s.mtime.Nsec)).bool(keep).send(frameMeta)
}

// failed describes an error about an entry, in a running pass errVanished if
// the entry is gone or has become something else.
func (p *pass) failed(operation, path string, err error) error {
	for _, gone := range []error{unix.ENOENT, unix.ENOTDIR, unix.ELOOP, unix.ESTALE, unix.ENXIO, errVanished} {
		if !errors.Is(err, gone) {
			continue
		}
		if p.final {
			return fmt.Errorf("%s %q: %w: %w", operation, filepath.Join(p.t.Path, path), ErrChanged, err)
		}
		return errVanished
	}
	return fmt.Errorf("%s %q: %w", operation, filepath.Join(p.t.Path, path), err)
}

// racy reports whether a change after begin could leave ctime as it is.
func racy(ctime unix.Timespec, begin time.Time) bool {
	return !time.Unix(ctime.Unix()).Before(begin.Add(-racyWindow))
}
