package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// The image "host" shows a pod the host's own programs and configuration. What
// is private to the host must not be seen, whatever the pod's user:
//
//   - at the top level everything that is no userland (see userland) is empty
//     or missing;
//   - below /etc, /opt and /var, what the host keeps from some of its own users
//     is kept from all pods: a file not readable by everyone is missing, a
//     directory not open to everyone is empty. That covers passwords, host
//     keys, private keys, logs, mail, databases and what nobody thought of.
//
// It is done by whiteouts and opaque directories in the upper layer, which are
// made once for each host the pod comes to. What the host keeps private in a
// public directory later on is protected by its permissions only, so not from the
// root of a pod.
//
// Overlay does not show what is mounted on the host's file system. Where /usr or
// /opt is a mount of its own it is bound in, read-only; a separate /var is not.

// userland are the entries of the host's / that a pod sees.
var userland = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32", "usr", "etc", "opt", "var"}

// scanned are the directories searched for what is not for everyone.
var scanned = []string{"/etc", "/opt", "/var"}

// bound are the directories that are bound in where they are mounts.
var bound = []string{"/usr", "/opt"}

// isMount reports whether a file system is mounted at path.
func isMount(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_NO_AUTOMOUNT, 0, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// hostKeys are the names of the keys the host is known by, public halves too: a
// pod that runs sshd has its own.
const hostKeys = "/etc/ssh/ssh_host_"

// skeleton are the directories every pod has, empty if need be, and their
// permission bits.
var skeleton = map[string]uint32{
	"dev": 0o755, "proc": 0o555, "sys": 0o555, "run": 0o755, "tmp": 0o1777,
	"root": 0o700, "home": 0o755, "mnt": 0o755, "media": 0o755, "srv": 0o755, "boot": 0o755,
	"var/tmp": 0o1777,
}

// hidden is a path of the host that no pod may see.
type hidden struct {
	path string // relative to /
	// dir shows an empty directory with these attributes, else nothing is there.
	dir      bool
	mode     uint32
	uid, gid int
}

// hideHost puts what covers the host's private files into the upper layer. What
// the pod itself has put there, on another host, stays. The search was done by
// Prepare: it takes tens of milliseconds, and a pod that moves is frozen now.
func (c *Container) hideHost() error {
	if c.hidden == nil {
		return errors.New("it is not known what to hide: Mount must follow Prepare")
	}
	upper, err := openDir(c.paths.upper)
	if err != nil {
		return err
	}
	defer upper.Close()
	for _, h := range c.hidden {
		if err := h.cover(upper); err != nil {
			return fmt.Errorf("/%s: %w", h.path, err)
		}
	}
	return nil
}

// hostHidden lists what to hide on this host now. own are podd's directories.
func hostHidden(own ...string) ([]hidden, error) {
	var list []hidden
	entries, err := os.ReadDir("/")
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		if _, ok := skeleton[entry.Name()]; !ok && !slices.Contains(userland, entry.Name()) {
			list = append(list, hidden{path: entry.Name()})
		}
	}
	for name, mode := range skeleton {
		list = append(list, hidden{path: name, dir: true, mode: mode})
	}
	for _, dir := range own {
		list = append(list, hidden{path: dir[1:], dir: true, mode: 0o700})
	}
	slices.SortFunc(list, func(a, b hidden) int { return strings.Compare(a.path, b.path) })
	found := make([][]hidden, len(scanned))
	var scans errgroup.Group
	for i, top := range scanned {
		scans.Go(func() (err error) {
			if found[i], err = scan(top, own); err != nil {
				err = fmt.Errorf("looking for private files below %s: %w", top, err)
			}
			return err
		})
	}
	if err := scans.Wait(); err != nil {
		return nil, err
	}
	return slices.Concat(append([][]hidden{list}, found...)...), nil
}

// scan lists what is not for everyone below top.
func scan(top string, own []string) ([]hidden, error) {
	dir, err := os.Open(top)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	st, err := fstat(dir)
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	s := &scanner{own: own, device: st.Dev}
	err = s.scan(dir, top)
	return s.list, err
}

// scanner walks through a tree by descriptors: there are thousands of files, and
// names of one component are found in half of the time that whole paths take.
type scanner struct {
	own    []string
	device uint64
	list   []hidden
}

// scan adds what is not for everyone in a directory, which it closes. Other
// mounts are skipped: overlay does not show them.
func (s *scanner) scan(dir *os.File, path string) error {
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	if errors.Is(err, fs.ErrNotExist) { // it was deleted since
		return nil
	}
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := s.look(dir, entry, path+"/"+entry.Name()); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) look(parent *os.File, entry fs.DirEntry, path string) error {
	if strings.HasPrefix(path, hostKeys) && !entry.IsDir() {
		s.list = append(s.list, hidden{path: path[1:]})
		return nil
	}
	if entry.Type()&fs.ModeSymlink != 0 {
		return nil
	}
	var st unix.Stat_t
	err := unix.Fstatat(int(parent.Fd()), entry.Name(), &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT { // the host lives on
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "fstatat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if st.Mode&0o4 == 0 && st.Mode&unix.S_IFMT != unix.S_IFLNK {
			s.list = append(s.list, hidden{path: path[1:]})
		}
		return nil
	}
	switch {
	case st.Dev != s.device || slices.Contains(s.own, path) || skeleton[path[1:]] != 0:
		return nil
	case st.Mode&0o5 != 0o5:
		s.list = append(s.list, hidden{path[1:], true, st.Mode & 0o7777, int(st.Uid), int(st.Gid)})
		return nil
	}
	fd, err := unix.Openat(int(parent.Fd()), entry.Name(), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP { // it was another one's since
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "openat", Path: path, Err: err}
	}
	return s.scan(os.NewFile(uintptr(fd), path), path)
}

// cover hides one path, unless the upper layer has something of its own there.
func (h hidden) cover(upper *os.File) error {
	dir, name := filepath.Split(h.path)
	parent, err := upperDir(upper, filepath.Clean(dir), "/")
	if errors.Is(err, errNotLower) {
		return nil
	}
	if err != nil {
		return err
	}
	defer parent.Close()
	if !h.dir {
		err := unix.Mknodat(int(parent.Fd()), name, unix.S_IFCHR, 0)
		if err == unix.EEXIST {
			return nil
		}
		return err
	}
	err = unix.Mkdirat(int(parent.Fd()), name, 0o700)
	if err != nil && err != unix.EEXIST {
		return err
	}
	created := err == nil
	d, err := openIn(parent, name, unix.O_DIRECTORY, false)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // the pod's own file
	}
	if err != nil {
		return err
	}
	defer d.Close()
	fd := int(d.Fd())
	if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
		return err
	}
	if !created {
		return nil
	}
	if err := unix.Fchown(fd, h.uid, h.gid); err != nil {
		return err
	}
	return unix.Fchmod(fd, h.mode)
}

// opaqueXattr marks a directory of an upper layer that hides the lower one of
// the same name (Documentation/filesystems/overlayfs.rst).
const opaqueXattr = "trusted.overlay.opaque"

// errNotLower says that at some component the lower layer does not show.
var errNotLower = errors.New("covered by the upper layer")

// upperDir opens a directory of the upper layer, making what is missing with
// the attributes it has in lower, because the upper's attributes are what the
// pod sees.
func upperDir(upper *os.File, rel, lower string) (*os.File, error) {
	d, err := openIn(upper, ".", unix.O_DIRECTORY, false)
	if err != nil || rel == "." {
		return d, err
	}
	for _, name := range strings.Split(rel, "/") {
		lower = filepath.Join(lower, name)
		next, err := upperChild(d, name, lower)
		d.Close()
		if err != nil {
			return nil, err
		}
		d = next
	}
	return d, nil
}

func upperChild(parent *os.File, name, lower string) (*os.File, error) {
	err := unix.Mkdirat(int(parent.Fd()), name, 0o700)
	if err != nil && err != unix.EEXIST {
		return nil, &os.PathError{Op: "mkdirat", Path: name, Err: err}
	}
	created := err == nil
	d, err := openIn(parent, name, unix.O_DIRECTORY, false)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, errNotLower
	}
	if err != nil {
		return nil, err
	}
	if !created {
		value := make([]byte, 1)
		if n, err := unix.Fgetxattr(int(d.Fd()), opaqueXattr, value); err == nil && n == 1 && value[0] == 'y' {
			d.Close()
			return nil, errNotLower
		}
		return d, nil
	}
	var st unix.Stat_t
	err = unix.Lstat(lower, &st)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		// The host has deleted it since, with whatever was to be hidden in it.
		err = unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR)
		if d.Close(); err == nil {
			err = errNotLower
		}
		return nil, err
	}
	if err == nil {
		err = unix.Fchown(int(d.Fd()), int(st.Uid), int(st.Gid))
	}
	if err == nil {
		err = unix.Fchmod(int(d.Fd()), st.Mode&0o7777)
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("copying the attributes of %s: %w", lower, err)
	}
	return d, nil
}
