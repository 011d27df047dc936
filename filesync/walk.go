package filesync

import (
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// readDir brings directory d and what is in it up to date, and pushes the
// directories below on the stack.
func (p *pass) readDir(d *node) error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	begin := time.Now()
	fd, err := openBeneath(p.t.fd, d.path(), unix.O_RDONLY|unix.O_DIRECTORY)
	otherFS := errors.Is(err, unix.EXDEV)
	var st unix.Stat_t
	if !otherFS {
		if err != nil {
			return p.failed("opening directory", d.path(), err)
		}
		defer unix.Close(fd)
		if err := unix.Fstat(fd, &st); err != nil {
			return p.failed("stat of", d.path(), err)
		}
		otherFS = uint64(st.Dev) != p.t.dev
	}
	if otherFS {
		return fmt.Errorf("directory %q: %w: it is another file system", filepath.Join(p.t.Path, d.path()), ErrUnsupported)
	}
	wholeRoot := d.parent != nil || p.t.Entry == ""
	if wholeRoot {
		if err := p.updateDir(d, fd, statOf(&st), begin); err != nil {
			return err
		}
	}
	p.names.reset()
	for {
		name, err := p.names.next(fd)
		if err != nil {
			return p.failed("reading directory", d.path(), err)
		}
		if name == nil {
			break
		}
		if !wholeRoot && string(name) != p.t.Entry {
			continue
		}
		p.stats.Entries++
		if err := p.entry(d, fd, name); err != nil && err != errVanished {
			return err
		}
		if p.e.err != nil {
			return p.e.err
		}
	}
	for _, n := range d.children {
		if n.pass != p.n {
			p.sweeps = append(p.sweeps, d)
			break
		}
	}
	return nil
}

// updateDir sends d's own metadata if they changed.
func (p *pass) updateDir(d *node, fd int, now stat, begin time.Time) error {
	x := d.inode
	if x.stat == now && !x.racy {
		return nil
	}
	xattrs, err := readXattrs(fdPath(fd, "."), false)
	if err != nil {
		return p.failed("reading extended attributes of", d.path(), err)
	}
	hash := hashXattrs(xattrs, p.s.seed)
	if !x.stat.sameMeta(now) || x.xattrs != hash {
		p.enter(d)
		p.sendMeta("", now, xattrs, false)
		p.touch(d)
		p.stats.Changed++
	}
	x.stat, x.xattrs, x.racy = now, hash, racy(now.ctime, begin)
	return nil
}

// entry brings one name in directory d up to date.
func (p *pass) entry(d *node, dirfd int, rawName []byte) error {
	n := d.children[string(rawName)]
	var name string
	if n != nil {
		name = n.name
	} else {
		name = string(rawName)
	}
	begin := time.Now()
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return p.failed("stat of", d.join(name), err)
	}
	now := statOf(&st)
	if now.format() == unix.S_IFDIR {
		return p.dirEntry(d, n, name)
	}
	if f := now.format(); (f == unix.S_IFCHR || f == unix.S_IFBLK) && !now.whiteout() && !(p.t.Devices && f == unix.S_IFCHR && containerDevice(now.rdev)) {
		return fmt.Errorf("device node %q: %w", filepath.Join(p.t.Path, d.join(name)), ErrUnsupported)
	}
	return p.fileEntry(&file{d: d, dirfd: dirfd, name: name, begin: begin,
		id: id{uint64(st.Dev), st.Ino}, now: now}, n)
}

func (p *pass) dirEntry(d, n *node, name string) error {
	if n != nil && !n.isDir() {
		p.remove(n)
		n = nil
	}
	if n == nil {
		if path := d.join(name); len(path) > maxPath {
			return fmt.Errorf("directory %q: %w: its path is longer than %d bytes", path, ErrUnsupported, maxPath)
		}
		p.enter(d)
		p.touch(d)
		p.e.begin().string(name).send(frameMkdir)
		// With a zero stat readDir finds everything changed.
		n = d.attach(name, &inode{stat: stat{mode: unix.S_IFDIR}})
	}
	if n.pass != p.n {
		n.pass = p.n
		p.stack = append(p.stack, n)
	}
	return nil
}

// file is an entry that is not a directory, as one pass found it.
type file struct {
	d     *node
	dirfd int
	name  string
	begin time.Time // before it was looked at
	id    id
	now   stat
}

func (f *file) path() string { return f.d.join(f.name) }

// fileEntry brings f up to date; n is what the picture has under its name.
// The picture may have the file under another name, because it was renamed or
// is a hard link; then it is linked and no content sent again.
func (p *pass) fileEntry(f *file, n *node) error {
	x := p.t.inodes[f.id]
	target := ""
	if f.now.format() == unix.S_IFLNK {
		if x != nil && x.stat == f.now && !x.racy {
			target = x.target
		} else if err := p.readlink(f, &target); err != nil {
			return err
		}
	}
	if x != nil && !x.couldBecome(f.now, target) {
		p.t.forget(x)
		x = nil
	}
	if n != nil && (n.isDir() || n.inode != x) {
		p.remove(n)
		n = nil
		x = p.t.inodes[f.id] // its last name may have been below n
	}
	if x != nil && n == nil {
		p.enter(f.d)
		p.touch(f.d)
		p.e.begin().string(f.name).string(x.links[0].path()).send(frameLink)
		n = f.d.attach(f.name, x)
		p.stats.Changed++
	}
	if x == nil {
		x = &inode{id: f.id, target: target}
	}
	if x.pass != p.n {
		create := n == nil
		if err := p.update(f, x, create); err != nil {
			return err
		}
		if create {
			p.touch(f.d)
			n = f.d.attach(f.name, x)
			p.t.inodes[f.id] = x
		}
		x.pass = p.n
	}
	n.pass = p.n
	return nil
}

func (p *pass) readlink(f *file, target *string) error {
	buf := make([]byte, maxPath+1)
	n, err := unix.Readlinkat(f.dirfd, f.name, buf)
	if err == unix.EINVAL {
		err = errVanished // it is no symbolic link any more
	}
	if err != nil {
		return p.failed("reading link", f.path(), err)
	}
	*target = string(buf[:n])
	return nil
}

// update sends what changed of x, which is f on disk. When it returns
// errVanished it has sent nothing.
func (p *pass) update(f *file, x *inode, create bool) error {
	changed := create || x.stat != f.now || x.racy
	if f.now.format() == unix.S_IFREG {
		if !changed && !p.t.byContent {
			return nil
		}
		return p.updateRegular(f, x, create)
	}
	if !changed {
		return nil
	}
	xattrs, err := readXattrs(fdPath(f.dirfd, f.name), false)
	if err != nil {
		return p.failed("reading extended attributes of", f.path(), err)
	}
	hash := hashXattrs(xattrs, p.s.seed)
	if create {
		p.enter(f.d)
		if f.now.format() == unix.S_IFLNK {
			p.e.begin().string(f.name).string(x.target).send(frameSymlink)
		} else {
			p.e.begin().string(f.name).uint(uint64(f.now.format())).uint(f.now.rdev).send(frameNode)
		}
	}
	if create || !x.stat.sameMeta(f.now) || x.xattrs != hash {
		p.enter(f.d)
		p.sendMeta(f.name, f.now, xattrs, false)
		p.stats.Changed++
	}
	x.stat, x.xattrs, x.racy = f.now, hash, racy(f.now.ctime, f.begin)
	return nil
}
