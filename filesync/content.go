package filesync

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

// updateRegular sends what changed of regular file f.
func (p *pass) updateRegular(f *file, x *inode, create bool) error {
	fd, err := p.open(f)
	if err != nil {
		return err
	}
	defer unix.Close(fd)

	if p.t.byContent && !create && x.stat == f.now && !x.racy {
		same, err := p.sameSmall(fd, x)
		if err != nil {
			return p.failed("reading", f.path(), err)
		}
		if same {
			return nil
		}
	}
	begin := time.Now()
	if !p.final && !p.t.byContent {
		// WAIT_BEFORE and WAIT_AFTER make WRITE a writeback for data
		// integrity, which skips no page (sync_file_range(2)).
		const all = unix.SYNC_FILE_RANGE_WAIT_BEFORE | unix.SYNC_FILE_RANGE_WRITE | unix.SYNC_FILE_RANGE_WAIT_AFTER
		if _, err := ignoringEINTR(func() (int, error) { return 0, unix.SyncFileRange(fd, 0, 0, all) }); err != nil {
			return p.failed("writing back", f.path(), err)
		}
	}
	// The seek waits for a write(2) under way; stat and read come after it.
	data, err := seekData(fd, 0)
	if err != nil {
		return p.failed("finding the data of", f.path(), err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return p.failed("stat of", f.path(), err)
	}
	now := statOf(&st)
	var xattrs []xattr
	hash := x.xattrs
	haveXattrs := create || x.stat != now || x.racy
	if haveXattrs {
		if xattrs, err = readXattrs(fdPath(fd, ""), true); err != nil {
			return p.failed("reading extended attributes of", f.path(), err)
		}
		hash = hashXattrs(xattrs, p.s.seed)
	}

	c := differ{p: p, f: f, fd: fd, old: x.pieces, size: now.size, create: create}
	if create || x.stat.size != now.size {
		c.open()
	}
	if err := c.run(data); err != nil {
		return err
	}
	if p.final {
		if err := p.checkFrozen(f, fd, now); err != nil {
			return err
		}
	}
	if c.opened || !x.stat.sameMeta(now) || x.xattrs != hash {
		if !haveXattrs {
			// A write at the sink may drop attributes (file capabilities).
			if xattrs, err = readXattrs(fdPath(fd, ""), true); err != nil {
				return p.failed("reading extended attributes of", f.path(), err)
			}
		}
		p.enter(f.d)
		p.sendMeta(f.name, now, xattrs, false)
		p.stats.Changed++
	}
	x.stat, x.xattrs, x.pieces = now, hash, c.pieces
	// A final pass has not cleaned the pages.
	x.racy = racy(now.ctime, begin) || p.final
	return nil
}

// open opens f for reading and makes sure that it is still the file that stat
// saw: a FIFO or a device may have taken its place.
func (p *pass) open(f *file) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	open := func(flags int) (int, error) {
		return ignoringEINTR(func() (int, error) { return unix.Openat(f.dirfd, f.name, flags, 0) })
	}
	fd, err := open(flags | unix.O_NOATIME)
	if errors.Is(err, unix.EPERM) { // not root and not the owner
		fd, err = open(flags)
	}
	if err != nil {
		return -1, p.failed("opening", f.path(), err)
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && (st.Mode&unix.S_IFMT != unix.S_IFREG || st.Ino != f.id.ino || uint64(st.Dev) != f.id.dev) {
		err = errVanished
	}
	if err != nil {
		unix.Close(fd)
		return -1, p.failed("opening", f.path(), err)
	}
	return fd, nil
}

func (p *pass) checkFrozen(f *file, fd int, before stat) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return p.failed("stat of", f.path(), err)
	}
	if statOf(&st) != before {
		return fmt.Errorf("%q: %w", filepath.Join(p.t.Path, f.path()), ErrChanged)
	}
	return nil
}

// sameSmall is the fast path for the many small files of a tmpfs: it reports
// whether a file that is one piece still holds what was sent.
func (p *pass) sameSmall(fd int, x *inode) (bool, error) {
	if x.stat.size == 0 {
		return true, nil
	}
	if len(x.pieces) != 1 || x.pieces[0].off != 0 || int64(x.pieces[0].len) != x.stat.size {
		return false, nil
	}
	n, err := pread(fd, p.block[:x.stat.size], 0)
	if err != nil {
		return false, err
	}
	p.stats.Examined += int64(n)
	return int64(n) == x.stat.size && xxh3.Hash128Seed(p.block[:n], p.s.seed) == x.pieces[0].hash, nil
}

// differ compares a file's content with the pieces sent before and sends the
// difference.
type differ struct {
	p      *pass
	f      *file
	fd     int
	old    []piece // those that may still overlap what comes
	size   int64
	create bool
	opened bool // at the sink
	done   int64
	pieces []piece
}

// open selects the file at the sink.
func (c *differ) open() {
	if c.opened {
		return
	}
	c.opened = true
	c.p.enter(c.f.d)
	c.p.e.begin().string(c.f.name).uint(uint64(c.size)).bool(c.create).send(frameFile)
}

// run goes through the file's data, which begins at data (-1: there is none).
func (c *differ) run(data int64) error {
	for data >= 0 && data < c.size {
		hole, err := ignoringEINTR64(func() (int64, error) { return unix.Seek(c.fd, data, unix.SEEK_HOLE) })
		if err != nil {
			return c.p.failed("finding the holes of", c.f.path(), err)
		}
		hole = min(hole, c.size)
		for off := data; off < hole; {
			if err := c.p.ctx.Err(); err != nil {
				return err
			}
			block := c.p.block[:min(hole, (off/blockSize+1)*blockSize)-off]
			n, err := pread(c.fd, block, off)
			if err != nil {
				return fmt.Errorf("reading %q: %w", filepath.Join(c.p.t.Path, c.f.path()), err)
			}
			if n > 0 {
				c.piece(off, block[:n])
			}
			if n < len(block) { // truncated meanwhile
				if c.p.final {
					return fmt.Errorf("reading %q: %w", filepath.Join(c.p.t.Path, c.f.path()), ErrChanged)
				}
				c.gap(c.size)
				return nil
			}
			off += int64(n)
		}
		if c.p.e.err != nil {
			return c.p.e.err
		}
		if data, err = seekData(c.fd, hole); err != nil {
			return c.p.failed("finding the data of", c.f.path(), err)
		}
	}
	c.gap(c.size)
	return nil
}

// piece compares data at off and sends it if it is new.
func (c *differ) piece(off int64, data []byte) {
	c.gap(off)
	now := piece{off: off, len: len(data), hash: xxh3.Hash128Seed(data, c.p.s.seed)}
	c.p.stats.Examined += int64(len(data))
	if len(c.old) == 0 || c.old[0] != now {
		c.open()
		c.p.e.begin().uint(uint64(off)).sendWith(frameData, data)
		c.p.stats.Content += int64(len(data))
	}
	c.pieces = append(c.pieces, now)
	c.done = now.end()
	c.skip()
}

// skip forgets old pieces that lie before what is done.
func (c *differ) skip() {
	for len(c.old) > 0 && c.old[0].end() <= c.done {
		c.old = c.old[1:]
	}
}

// gap says that from what is done up to end there is only hole, and makes
// holes where the sink has data.
func (c *differ) gap(end int64) {
	start, stop := int64(-1), int64(-1)
	flush := func() {
		if start >= 0 {
			c.open()
			c.p.e.begin().uint(uint64(start)).uint(uint64(stop - start)).send(frameHole)
		}
	}
	for _, o := range c.old {
		if o.off >= end {
			break
		}
		// A hole that ends inside one of the sink's blocks would only clear
		// it, not free it, so it takes in the hole that follows as well.
		blockEnd := (o.end() + blockSize - 1) / blockSize * blockSize
		from, to := max(o.off, c.done, stop), min(blockEnd, end)
		if from >= to {
			continue
		}
		if from != stop {
			flush()
			start = from
		}
		stop = to
	}
	flush()
	c.done = max(c.done, end)
	c.skip()
}

// seekData returns the offset of the first data at or after off, -1 if there
// is none.
func seekData(fd int, off int64) (int64, error) {
	data, err := ignoringEINTR64(func() (int64, error) { return unix.Seek(fd, off, unix.SEEK_DATA) })
	if errors.Is(err, unix.ENXIO) {
		return -1, nil
	}
	return data, err
}

func ignoringEINTR64(call func() (int64, error)) (n int64, err error) {
	_, err = ignoringEINTR(func() (int, error) {
		n, err = call()
		return 0, err
	})
	return n, err
}

// pread reads until b is full or the file ends.
func pread(fd int, b []byte, off int64) (int, error) {
	total := 0
	for total < len(b) {
		n, err := ignoringEINTR(func() (int, error) { return unix.Pread(fd, b[total:], off+int64(total)) })
		if err != nil {
			return total, err
		}
		if n == 0 {
			break
		}
		total += n
	}
	return total, nil
}
