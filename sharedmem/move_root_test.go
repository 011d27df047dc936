//go:build root

package sharedmem

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == Subcommand {
		os.Exit(Main())
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "tests with the tag root must run as root")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// testCgroup makes a cgroup that charges memory, and returns its directory.
func testCgroup(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("poddtest-sharedmem-%d-%s", os.Getpid(), strings.ToLower(strings.ReplaceAll(t.Name(), "/", "-")))
	parent := "/sys/fs/cgroup/memory"
	if _, err := os.Stat(parent); err != nil {
		parent = "/sys/fs/cgroup"
	}
	dir := filepath.Join(parent, name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// charged is how much memory a cgroup has.
func charged(t *testing.T, cgroup string) (n int64) {
	t.Helper()
	for _, name := range []string{"memory.usage_in_bytes", "memory.current"} {
		if b, err := os.ReadFile(filepath.Join(cgroup, name)); err == nil {
			if _, err := fmt.Sscan(string(b), &n); err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("the cgroup does not say how much memory it has")
	return 0
}

// oneThread has several goroutines use a Keeper, as the connection does.
type oneThread struct {
	mu sync.Mutex
	*Keeper
}

func (o *oneThread) Segment(s Segment) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Keeper.Segment(s)
}

func (o *oneThread) Pages(id uint64, offset int64, content []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Keeper.Pages(id, offset, content)
}

func (o *oneThread) Hole(id uint64, offset, length int64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Keeper.Hole(id, offset, length)
}

func (o *oneThread) Drop(id uint64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.Keeper.Drop(id)
}

// newTestKeeper returns a Keeper, its directory, and the cgroup of its process.
func newTestKeeper(t *testing.T, limit int64) (k *oneThread, dir, cgroup string) {
	t.Helper()
	dir, cgroup = t.TempDir(), testCgroup(t)
	executable, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	k = &oneThread{Keeper: NewKeeper(KeeperOptions{Dir: dir, Executable: executable, MaxBytes: limit, JoinCgroup: func(pid int) error {
		return os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), fmt.Append(nil, pid), 0)
	}})}
	t.Cleanup(func() {
		k.Close()
		if err := End(dir); err != nil {
			t.Error(err)
		}
	})
	return k, dir, cgroup
}

// kept asks the process of a directory for a segment, as CRIU does.
func keptFile(t *testing.T, dir string, id uint64) (*os.File, error) {
	t.Helper()
	conn, err := reach(dir)
	if err != nil || conn == nil {
		t.Fatalf("no keeper is to be reached: %v", err)
	}
	defer conn.Close()
	_, file, err := ask(conn, request{op: opGet, id: id})
	if file != nil {
		t.Cleanup(func() { file.Close() })
	}
	return file, err
}

// holders is a directory that lists processes, as that of a cgroup.
type holders string

// hold has a process have a file open, until it is released.
func (h holders) hold(t *testing.T, file *os.File) (release func()) {
	t.Helper()
	cmd := exec.Command("sleep", "infinity")
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	release = sync.OnceFunc(func() {
		if err := cmd.Process.Kill(); err != nil {
			t.Error(err)
		}
		cmd.Wait() // it was killed
	})
	t.Cleanup(release)
	list, err := os.OpenFile(filepath.Join(string(h), "cgroup.procs"), os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer list.Close()
	if _, err := fmt.Fprintln(list, cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	return release
}

// segmentFile is a segment of the test.
type segmentFile struct {
	*os.File
	id uint64
}

func newSegment(t *testing.T, name string, size int64) segmentFile {
	t.Helper()
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	m := segmentFile{File: os.NewFile(uintptr(fd), name)}
	t.Cleanup(func() { m.Close() })
	var st unix.Stat_t
	if err := errors.Join(unix.Fstat(fd, &st), m.Truncate(size)); err != nil {
		t.Fatal(err)
	}
	m.id = st.Ino
	return m
}

func (m segmentFile) punch(t *testing.T, offset, length int64) {
	t.Helper()
	if err := unix.Fallocate(int(m.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length); err != nil {
		t.Fatal(err)
	}
}

// requireSame fails the test unless two files have the same bytes, size, pages and name.
func requireSame(t *testing.T, dir string, m segmentFile) {
	t.Helper()
	got, err := keptFile(t, dir, m.id)
	if err != nil {
		t.Fatalf("segment %d: %v", m.id, err)
	}
	var is, want unix.Stat_t
	if err := errors.Join(unix.Fstat(int(got.Fd()), &is), unix.Fstat(int(m.Fd()), &want)); err != nil {
		t.Fatal(err)
	}
	if is.Size != want.Size || is.Blocks != want.Blocks {
		t.Errorf("it has %d bytes in %d blocks, not %d in %d", is.Size, is.Blocks, want.Size, want.Blocks)
	}
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for at := int64(0); at < want.Size; at += int64(len(a)) {
		n, _ := m.ReadAt(a, at)
		if k, _ := got.ReadAt(b, at); n != k || !bytes.Equal(a[:n], b[:n]) {
			t.Fatalf("what is at %#x of %d bytes is another", at, want.Size)
		}
	}
	link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", got.Fd()))
	if want := "/memfd:" + m.Name() + " (deleted)"; err != nil || link != want {
		t.Errorf("it is called %q instead of %q, %v", link, want, err)
	}
}

// TestSend changes segments in every way between passes, and after the last one: what
// the keeper has at the end is the same, hole by hole, and charged to its cgroup.
func TestSend(t *testing.T) {
	procs := holders(t.TempDir())
	random := rand.New(rand.NewPCG(1, 2))
	bytesOf := rand.NewChaCha8([32]byte{3})
	page := func() []byte {
		b := make([]byte, pageSize)
		bytesOf.Read(b) // it never fails
		return b
	}
	segments, release := map[uint64]segmentFile{}, map[uint64]func(){}
	var added []uint64 // in this order, which that of the numbers may differ from
	add := func(name string, size int64) segmentFile {
		m := newSegment(t, name, size)
		segments[m.id], release[m.id] = m, procs.hold(t, m.File)
		added = append(added, m.id)
		return m
	}
	add("odd /\xc3\xa9 name", 3<<20+5)
	add("", 1<<20)
	sparse := add("sparse", 256<<20)
	large := add("large", 24<<20)
	for at := int64(0); at < 24<<20; at += pageSize {
		if _, err := large.WriteAt(page(), at); err != nil {
			t.Fatal(err)
		}
	}
	change := func(round int) {
		for _, id := range added {
			m, ok := segments[id]
			if !ok {
				continue
			}
			st, err := m.Stat()
			if err != nil {
				t.Fatal(err)
			}
			size := st.Size()
			for range 20 {
				at := random.Int64N(size)
				switch random.IntN(5) {
				case 0:
					m.punch(t, at, 1+random.Int64N(40*pageSize))
				case 1:
					if _, err := m.WriteAt(make([]byte, 10), at); err != nil {
						t.Fatal(err)
					}
				default:
					if _, err := m.WriteAt(page(), at); err != nil {
						t.Fatal(err)
					}
				}
			}
			if m != sparse && round > 0 && random.IntN(2) == 0 {
				if err := m.Truncate(1 + random.Int64N(8<<20)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}

	k, dir, charges := newTestKeeper(t, 1<<30)
	s, err := NewSource(string(procs))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const rounds = 8
	for round := range rounds {
		change(round)
		switch round {
		case 2:
			add("late", 70*pageSize)
		case 4:
			gone := segments[large.id]
			delete(segments, large.id)
			gone.Close()
			release[large.id]()
		}
		stats, err := s.Send(t.Context(), k)
		if err != nil {
			t.Fatal(err)
		}
		if round == 0 && stats.Changed < 20<<20 {
			t.Errorf("the first passes: %+v", stats)
		}
	}
	if _, err := keptFile(t, dir, large.id); !errors.Is(err, unix.ENOENT) {
		t.Errorf("a segment that is gone is kept: %v", err)
	}
	change(rounds)
	left, err := s.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	known := map[uint64]bool{}
	for _, l := range left {
		known[l.ID] = true
	}
	stats, err := s.Finish(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v, and %d bytes are charged", stats, charged(t, charges))
	var total int64
	for id, m := range segments {
		if !known[id] {
			t.Errorf("segment %q is left to CRIU", m.Name())
			continue
		}
		requireSame(t, dir, m)
		var st unix.Stat_t
		if err := unix.Fstat(int(m.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		total += st.Blocks * 512
	}
	if n := k.Bytes(); n != total || charged(t, charges) < n {
		t.Errorf("%d bytes are kept, %d of them the test's, and %d charged", n, total, charged(t, charges))
	}
}

// A peer may send anything; nothing of it is outside a segment, or more than is allowed.
func TestKeeperRefuses(t *testing.T) {
	page := make([]byte, pageSize)
	for name, c := range map[string]struct {
		want error
		do   func(k *oneThread) error
	}{
		"no number":      {ErrSource, func(k *oneThread) error { return k.Segment(Segment{Size: 1}) }},
		"a large number": {ErrSource, func(k *oneThread) error { return k.Segment(Segment{ID: 1 << 32, Size: 1}) }},
		"no size":        {ErrSource, func(k *oneThread) error { return k.Segment(Segment{ID: 8}) }},
		"a long name": {ErrSource, func(k *oneThread) error {
			return k.Segment(Segment{ID: 8, Size: 1, Name: strings.Repeat("x", MaxName+1)})
		}},
		"a zero":          {ErrSource, func(k *oneThread) error { return k.Segment(Segment{ID: 8, Size: 1, Name: "a\x00b"}) }},
		"unknown":         {ErrSource, func(k *oneThread) error { return k.Pages(8, 0, page) }},
		"before":          {ErrSource, func(k *oneThread) error { return k.Pages(7, -pageSize, page) }},
		"behind":          {ErrSource, func(k *oneThread) error { return k.Pages(7, 10*pageSize, page) }},
		"across the end":  {ErrSource, func(k *oneThread) error { return k.Pages(7, 9*pageSize, append(page, page...)) }},
		"between pages":   {ErrSource, func(k *oneThread) error { return k.Pages(7, 1, page) }},
		"a hole behind":   {ErrSource, func(k *oneThread) error { return k.Hole(7, 9*pageSize, 2*pageSize) }},
		"a hole of less":  {ErrSource, func(k *oneThread) error { return k.Hole(7, 0, -pageSize) }},
		"unknown dropped": {ErrSource, func(k *oneThread) error { return k.Drop(8) }},
		"too much": {ErrTooMuch, func(k *oneThread) error {
			if err := k.Segment(Segment{ID: 9, Size: 1 << 40}); err != nil {
				return err
			}
			for at := int64(0); ; at += 1 << 30 {
				if err := k.Pages(9, at, page); err != nil {
					return err
				}
			}
		}},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			k, _, _ := newTestKeeper(t, 16*pageSize)
			// The last page is not a whole one.
			if err := k.Segment(Segment{ID: 7, Size: 10*pageSize - 100}); err != nil {
				t.Fatal(err)
			}
			if err := k.Pages(7, 9*pageSize, page); err != nil {
				t.Fatal(err)
			}
			if err := c.do(k); !errors.Is(err, c.want) {
				t.Errorf("got %v", err)
			}
			if n := k.Bytes(); n > 16*pageSize+pageSize {
				t.Errorf("%d bytes are kept", n)
			}
		})
	}
}

// A restore that came to nothing has sealed a segment, or not: the next one gets it without
// seals, with what is in it.
func TestKeeperUnseals(t *testing.T) {
	k, dir, _ := newTestKeeper(t, 1<<20)
	for id, sealable := range map[uint64]bool{7: true, 8: false} {
		if err := k.Segment(Segment{ID: id, Name: "sealed", Size: 100*pageSize + 5, Sealable: sealable}); err != nil {
			t.Fatal(err)
		}
		if err := k.Pages(id, 50*pageSize, bytes.Repeat([]byte("x"), pageSize)); err != nil {
			t.Fatal(err)
		}
		if err := k.Pages(id, 100*pageSize, bytes.Repeat([]byte("y"), pageSize)); err != nil {
			t.Fatal(err)
		}
		k.segments[id].file.Close() // nobody writes any more
		for range 3 {
			file, err := keptFile(t, dir, id)
			if err != nil {
				t.Fatal(err)
			}
			want := map[bool]int{true: 0, false: sealSeal}[sealable]
			if seals, err := unix.FcntlInt(file.Fd(), unix.F_GET_SEALS, 0); err != nil || seals != want {
				t.Errorf("its seals are %d, %v", seals, err)
			}
			b, err := io.ReadAll(io.NewSectionReader(file, 0, 1<<20))
			if err != nil || len(b) != 100*pageSize+5 || b[50*pageSize] != 'x' || string(b[100*pageSize:]) != "yyyyy" {
				t.Fatalf("it has %d bytes, %v", len(b), err)
			}
			var st unix.Stat_t
			if err := unix.Fstat(int(file.Fd()), &st); err != nil || st.Blocks != 2*pageSize/512 {
				t.Errorf("it has %d blocks, %v", st.Blocks, err)
			}
			if sealable {
				if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// TestKeeperLives sees a keeper's process live on without podd, end when it is told to,
// and by itself when the images are gone.
func TestKeeperLives(t *testing.T) {
	for _, how := range []string{"told", "images"} {
		t.Run(how, func(t *testing.T) {
			k, dir, _ := newTestKeeper(t, 1<<20)
			if pid, err := Find(dir); pid != 0 || err != nil {
				t.Fatalf("before there was a segment: %d, %v", pid, err)
			}
			if err := k.Segment(Segment{ID: 7, Size: pageSize}); err != nil {
				t.Fatal(err)
			}
			if err := k.Pages(7, 0, bytes.Repeat([]byte("x"), pageSize)); err != nil {
				t.Fatal(err)
			}
			k.Close()
			pid, err := Find(dir)
			if err != nil || pid == 0 {
				t.Fatalf("it is %d, %v", pid, err)
			}
			file, err := keptFile(t, dir, 7)
			if err != nil {
				t.Fatal(err)
			}
			if b := make([]byte, pageSize); func() bool { n, _ := file.ReadAt(b, 0); return n != pageSize || b[9] != 'x' }() {
				t.Error("the content is another")
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if how == "told" {
				err = End(dir)
			} else {
				err = os.RemoveAll(dir)
			}
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			for {
				if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100); n > 0 {
					break
				} else if err != nil && err != unix.EINTR || ctx.Err() != nil {
					t.Fatalf("it does not end: %v", err)
				}
			}
			if pid, err := Find(dir); pid != 0 || err != nil {
				t.Errorf("it is still found: %d, %v", pid, err)
			}
			if err := End(dir); err != nil {
				t.Error(err)
			}
		})
	}
}
