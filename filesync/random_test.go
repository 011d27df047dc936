package filesync

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// mutator makes random changes to a tree. Operations that meet something of
// the wrong kind fail, which is part of the randomness.
type mutator struct {
	root   string
	rand   *rand.Rand
	xattrs bool // user.* work here (on tmpfs since Linux 6.6)
	asRoot bool
}

func (m *mutator) name() string {
	names := []string{"a", "b", "c", "d", "new\nline", "sp ace", "\xff\xfe", "-rf", "ünï", "longer name"}
	return names[m.rand.IntN(len(names))]
}

// path returns a random path, existing or not, at most four levels deep.
func (m *mutator) path() string {
	p := m.root
	for range 1 + m.rand.IntN(4) {
		p = filepath.Join(p, m.name())
		if st, err := os.Lstat(p); err != nil || !st.IsDir() {
			break
		}
	}
	return p
}

func (m *mutator) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(m.rand.Uint32())
	}
	return b
}

func (m *mutator) write(p string, flags int) error {
	f, err := os.OpenFile(p, flags|os.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return err
	}
	switch m.rand.IntN(4) {
	case 0:
		return f.Truncate(m.rand.Int64N(400 << 10))
	case 1:
		off, n := m.rand.Int64N(300<<10)&^4095, (1+m.rand.Int64N(100<<10))&^4095
		if n == 0 {
			return nil
		}
		return unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	default:
		_, err := f.WriteAt(m.bytes(m.rand.IntN(20<<10)), m.rand.Int64N(300<<10))
		return err
	}
}

func (m *mutator) step() error {
	p := m.path()
	switch m.rand.IntN(22) {
	case 0, 1, 2, 3:
		return m.write(p, os.O_CREATE)
	case 4, 5:
		return m.write(p, 0)
	case 6, 7, 8:
		return os.Mkdir(p, 0o755)
	case 9, 10:
		return os.Rename(p, m.path())
	case 11, 12:
		return os.Link(p, m.path())
	case 13:
		return os.Symlink(m.path(), p)
	case 14:
		return os.Remove(p)
	case 15:
		if m.rand.IntN(3) == 0 {
			return os.RemoveAll(p)
		}
		return nil
	case 16:
		return m.special(p)
	case 17:
		if st, err := os.Lstat(p); err != nil || st.Mode()&fs.ModeSymlink != 0 {
			return err
		}
		modes := []uint32{0o700, 0o755, 0o2775, 0o1777, 0o4711}
		return unix.Chmod(p, modes[m.rand.IntN(len(modes))])
	case 18: // content changes, mtime does not
		st, err := os.Lstat(p)
		if err != nil || !st.Mode().IsRegular() {
			return err
		}
		if err := m.write(p, 0); err != nil {
			return err
		}
		return os.Chtimes(p, time.Time{}, st.ModTime())
	case 19:
		t := unix.Timespec{Sec: m.rand.Int64N(4e9), Nsec: m.rand.Int64N(1e9)}
		return unix.UtimesNanoAt(unix.AT_FDCWD, p, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
	case 20: // the usual way to replace a file
		if err := m.write(p+"~", os.O_CREATE); err != nil {
			return err
		}
		return os.Rename(p+"~", p)
	default:
		return m.metadata(p)
	}
}

func (m *mutator) special(p string) error {
	switch m.rand.IntN(3) {
	case 0:
		return unix.Mkfifo(p, 0o640)
	case 1:
		if m.asRoot {
			return unix.Mknod(p, unix.S_IFCHR, 0)
		}
		return nil
	default:
		if len(p) > 100 { // sun_path
			return nil
		}
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p, Net: "unix"})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		return l.Close()
	}
}

func (m *mutator) metadata(p string) error {
	if m.asRoot {
		switch m.rand.IntN(3) {
		case 0:
			return os.Lchown(p, m.rand.IntN(3), m.rand.IntN(3))
		case 1:
			return unix.Lsetxattr(p, "trusted.overlay.opaque", []byte("y"), 0)
		}
	}
	if !m.xattrs {
		return nil
	}
	name := fmt.Sprintf("user.%d", m.rand.IntN(3))
	if m.rand.IntN(3) == 0 {
		return unix.Lremovexattr(p, name)
	}
	return unix.Lsetxattr(p, name, m.bytes(m.rand.IntN(200)), 0)
}

// expected are the errors that random operations are bound to meet; EACCES where
// root opens another user's socket with O_CREAT in a sticky directory (may_create_in_sticky in fs/namei.c).
var expected = []error{
	fs.ErrNotExist, fs.ErrExist, unix.ENOTDIR, unix.EISDIR, unix.ENOTEMPTY, unix.EINVAL, unix.ELOOP, unix.EXDEV,
	unix.ENODATA, unix.EPERM, unix.ENXIO, unix.EADDRINUSE, unix.ENAMETOOLONG, unix.ETXTBSY, unix.EACCES,
}

func (m *mutator) run(t testing.TB, steps int) {
	t.Helper()
	for range steps {
		err := m.step()
		if err != nil && !slices.ContainsFunc(expected, func(e error) bool { return errors.Is(err, e) }) {
			t.Fatal(err)
		}
	}
}

// testRandom mutates a tree between many passes and compares after each.
func testRandom(t *testing.T, src, dst string, m *mutator) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	m.root, m.rand = src, rand.New(rand.NewPCG(seed, 0))
	p := newPair(t, src, dst, Options{})
	for i := range 40 {
		m.run(t, 1+m.rand.IntN(80))
		p.pass(i%7 == 6)
		requireEqual(t, src, dst)
		if i%5 == 0 {
			if stats := p.pass(false); stats.Changed+stats.Removed != 0 || stats.Content != 0 {
				t.Fatalf("a pass without changes did something: %+v", stats)
			}
		}
	}
}

// testConcurrent mutates a tree while passes run, then compares.
func testConcurrent(t *testing.T, src, dst string, m *mutator) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	m.root, m.rand = src, rand.New(rand.NewPCG(seed, 0))
	p := newPair(t, src, dst, Options{})
	for range 8 {
		done := make(chan struct{})
		go func() {
			defer close(done)
			m.run(t, 400)
		}()
		for running := true; running; {
			select {
			case <-done:
				running = false
			default:
				p.pass(false)
			}
		}
		p.pass(true)
		requireEqual(t, src, dst)
	}
}

func dirs(t testing.TB, base string) (src, dst string) {
	t.Helper()
	src, dst = filepath.Join(base, "s"), filepath.Join(base, "d")
	for _, d := range []string{src, dst} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return src, dst
}

func TestRandomDisk(t *testing.T) {
	src, dst := dirs(t, diskDir(t))
	testRandom(t, src, dst, &mutator{xattrs: true})
}

func TestRandomMemory(t *testing.T) {
	src, dst := dirs(t, memoryDir(t))
	testRandom(t, src, dst, &mutator{})
}

func TestConcurrentDisk(t *testing.T) {
	src, dst := dirs(t, diskDir(t))
	testConcurrent(t, src, dst, &mutator{xattrs: true})
}

func TestConcurrentMemory(t *testing.T) {
	src, dst := dirs(t, memoryDir(t))
	testConcurrent(t, src, dst, &mutator{})
}
