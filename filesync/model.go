package filesync

import (
	"slices"
	"strings"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

// node is a name in the source's picture of what the sink has. The picture is
// exact: it changes with every frame sent, as the sink's tree does.
type node struct {
	name     string
	parent   *node // nil for a root, and for a node that was removed
	inode    *inode
	children map[string]*node // of a directory, else nil
	// pass is the last one that saw the name; touched the last one that
	// changed what is in the directory, and so its mtime at the sink.
	pass    uint64
	touched uint64
}

// inode is a file in the picture, under one or more names.
type inode struct {
	id     id
	stat   stat
	xattrs xxh3.Uint128
	// racy: a change could have left the stat as it is; compare again.
	racy   bool
	target string  // of a symbolic link
	pieces []piece // of a regular file's data, ascending
	links  []*node // of anything but a directory
	pass   uint64  // the last one that brought it up to date
}

// id is what a file is known by on the source while it exists.
type id struct{ dev, ino uint64 }

// stat is what tells whether a file changed.
type stat struct {
	mode, uid, gid uint32
	rdev           uint64
	size           int64
	mtime, ctime   unix.Timespec
}

// piece is the part of a block that is data, as opposed to hole.
type piece struct {
	off  int64
	len  int
	hash xxh3.Uint128
}

func (p piece) end() int64 { return p.off + int64(p.len) }

func statOf(st *unix.Stat_t) stat {
	return stat{
		mode: st.Mode, uid: st.Uid, gid: st.Gid, rdev: uint64(st.Rdev),
		size: st.Size, mtime: st.Mtim, ctime: st.Ctim,
	}
}

// sameMeta reports whether what a meta frame sets is the same.
func (s stat) sameMeta(t stat) bool {
	return s.mode == t.mode && s.uid == t.uid && s.gid == t.gid && s.mtime == t.mtime
}

func (s stat) format() uint32 { return s.mode & unix.S_IFMT }

// whiteout reports whether s is overlayfs's mark of a deleted name.
func (s stat) whiteout() bool { return s.format() == unix.S_IFCHR && s.rdev == 0 }

// couldBecome reports whether the sink can turn the inode into one with s and
// target by changing it in place. If not, the source's inode number was reused.
func (x *inode) couldBecome(s stat, target string) bool {
	return x.stat.format() == s.format() && x.stat.rdev == s.rdev && x.target == target
}

func (n *node) isDir() bool { return n.children != nil }

// path is relative to the root, which is "".
func (n *node) path() string {
	if n.parent == nil {
		return ""
	}
	if n.parent.parent == nil {
		return n.name
	}
	var elements []string
	for ; n.parent != nil; n = n.parent {
		elements = append(elements, n.name)
	}
	slices.Reverse(elements)
	return strings.Join(elements, "/")
}

func (n *node) join(name string) string {
	if n.parent == nil {
		return name
	}
	return n.path() + "/" + name
}

// attach adds a name for x to directory d.
func (d *node) attach(name string, x *inode) *node {
	n := &node{name: name, parent: d, inode: x}
	d.children[name] = n
	if x.stat.format() == unix.S_IFDIR {
		n.children = map[string]*node{}
	} else {
		x.links = append(x.links, n)
	}
	return n
}

// detach takes n and all below out of the picture.
func (t *sourceTree) detach(n *node) {
	delete(n.parent.children, n.name)
	t.drop(n)
}

func (t *sourceTree) drop(n *node) {
	n.parent = nil
	if n.isDir() {
		for _, child := range n.children {
			t.drop(child)
		}
		return
	}
	x := n.inode
	x.links = slices.DeleteFunc(x.links, func(l *node) bool { return l == n })
	if len(x.links) == 0 {
		t.forget(x)
	}
}

// forget makes x unknown by its number on the source.
func (t *sourceTree) forget(x *inode) {
	if t.inodes[x.id] == x {
		delete(t.inodes, x.id)
	}
	x.id = id{}
}
