//go:build root

package checkpoint

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"podd/sharedmem"
)

// keepShared gives the place something that takes shared memory.
func (p *place) keepShared(t *testing.T) {
	t.Helper()
	executable, err := os.Executable()
	must(t, err)
	k := sharedmem.NewKeeper(sharedmem.KeeperOptions{Dir: p.images, Executable: executable, JoinCgroup: p.join, MaxBytes: 1 << 30})
	p.shared = k
	t.Cleanup(func() {
		k.Close()
		if err := sharedmem.End(p.images); err != nil {
			t.Error(err)
		}
	})
}

// sharedFile is a memfd that the pod has open, and the test, too.
type sharedFile struct {
	*os.File
	// number is the pod's descriptor.
	number int
}

func (p *place) giveShared(t *testing.T, name string, size int64) sharedFile {
	t.Helper()
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	must(t, err)
	f := sharedFile{File: os.NewFile(uintptr(fd), name)}
	t.Cleanup(func() { f.Close() })
	must(t, f.Truncate(size))
	f.number = p.give(t, fd)
	return f
}

// requireSame compares the pod's file with the test's: content, holes and seals.
func (f sharedFile) requireSame(t *testing.T, init int) {
	t.Helper()
	other, err := os.Open(fmt.Sprintf("/proc/%d/fd/%d", init, f.number))
	must(t, err)
	defer other.Close()
	var mine, its unix.Stat_t
	must(t, unix.Fstat(int(f.Fd()), &mine))
	must(t, unix.Fstat(int(other.Fd()), &its))
	if mine.Size != its.Size || mine.Blocks != its.Blocks || mine.Mode != its.Mode {
		t.Errorf("%s has %d bytes in %d blocks, mode %o; not %d in %d, %o", f.Name(), its.Size, its.Blocks, its.Mode, mine.Size, mine.Blocks, mine.Mode)
	}
	if mine.Ino == its.Ino {
		t.Errorf("%s is still the same file", f.Name())
	}
	a, err := io.ReadAll(io.NewSectionReader(f, 0, mine.Size))
	must(t, err)
	b, err := io.ReadAll(other)
	must(t, err)
	if !bytes.Equal(a, b) {
		t.Errorf("the content of %s is another", f.Name())
	}
	s1, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	must(t, err)
	s2, err := unix.FcntlInt(other.Fd(), unix.F_GET_SEALS, 0)
	must(t, err)
	if s1 != s2 {
		t.Errorf("%s has the seals %#x, not %#x", f.Name(), s2, s1)
	}
}

// TestMoveShared moves a pod that has memfds, one of which changes after it was sent, and
// restores it three times from the same images: twice with what was kept, and once
// without, which fails.
func TestMoveShared(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 4)
	c := w.control(t)
	was := c.ask(t)
	content := make([]byte, 6<<20)
	rand.NewChaCha8([32]byte{1}).Read(content)
	changing := w.source.giveShared(t, "changing", 16<<20+100)
	_, err := changing.WriteAt(content, 3<<20)
	must(t, err)
	sealed := w.source.giveShared(t, "sealed", 1<<20)
	_, err = sealed.WriteAt(content[:1<<20], 0)
	must(t, err)
	_, err = unix.FcntlInt(sealed.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	must(t, err)
	var late sharedFile

	w.target.keepShared(t)
	m := beginWith(t, e, pod.pid, w.source, w.target, func(o *DumpOptions) {
		o.Shared = true
		o.Hooks.Ready = func(context.Context) error {
			// Everything was sent ahead.
			_, err := changing.WriteAt(content[:3*pageSize], 4<<20)
			must(t, err)
			must(t, unix.Fallocate(int(changing.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 5<<20, 1<<20))
			late = w.source.giveShared(t, "late", 10*pageSize)
			_, err = late.WriteAt(content[:pageSize], 5*pageSize)
			must(t, err)
			return nil
		}
	}, func(*RestoreOptions) {})
	if p := m.result.Pages; p.Segments != 2 || p.Shared != 3*pageSize || p.Bytes > 32<<20 {
		t.Errorf("%+v", p)
	}
	for _, f := range []sharedFile{changing, sealed, late} {
		f.requireSame(t, m.init)
	}
	must(t, m.restore.Abort())

	restore := func() (*Restore, int, error) {
		r, err := e.PrepareRestore(t.Context(), w.target.restoreOptions())
		must(t, err)
		init, err := r.Run(t.Context())
		return r, init, err
	}
	again, init, err := restore()
	must(t, err)
	for _, f := range []sharedFile{changing, sealed, late} {
		f.requireSame(t, init)
	}
	must(t, again.Abort())

	found, err := filepath.Glob(filepath.Join(w.target.images, "shared-*.img"))
	if err != nil || len(found) != 2 {
		t.Errorf("the images have %v, %v", found, err)
	}
	must(t, sharedmem.End(w.target.images))
	if r, _, err := restore(); err == nil {
		t.Error("a pod was restored without its shared memory")
		must(t, r.Abort())
	}
	w.target.empty(t)
	must(t, m.dump.Abort())
	unharmed(t, c, was)
}

// TestSharedNotTaken leaves shared memory to CRIU if nobody asks podd to carry it, and
// refuses a stream with some that nobody takes.
func TestSharedNotTaken(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 4)
	c := w.control(t)
	was := c.ask(t)
	f := w.source.giveShared(t, "memory", 1<<20)
	_, err := f.WriteAt(bytes.Repeat([]byte("x"), 1<<19), 0)
	must(t, err)
	m := begin(t, e, pod.pid, w.source, w.target)
	if p := m.result.Pages; p.Segments != 0 || p.Shared != 0 {
		t.Errorf("%+v", p)
	}
	f.requireSame(t, m.init)
	must(t, m.restore.Abort())
	must(t, m.dump.Abort())
	unharmed(t, c, was)

	w.source.clear(t)
	w.target.clear(t)
	sourceConn, targetConn := pagesPipe(t)
	o := w.source.dumpOptions(pod.pid)
	o.Pages, o.Shared = sourceConn, true
	d, err := e.PrepareDump(t.Context(), o)
	must(t, err)
	received := w.target.receive(t.Context(), targetConn)
	_, sendErr := d.SendAhead(t.Context())
	if err := <-received; err == nil {
		t.Error("the stream was taken")
	}
	t.Log(sendErr) // nil, if all of it was on its way by then
	must(t, d.Abort())
	unharmed(t, c, was)
}

// TestMoveSealed moves a pod that has memfds mapped which can't be written to any more, as
// the clients of Wayland and browsers have, there and back. They come sealed, mapped and
// as unwritable as they were, whoever carries them.
func TestMoveSealed(t *testing.T) {
	for name, dump := range map[string]func(*DumpOptions){
		"by podd": func(o *DumpOptions) { o.Shared = true },
		"by CRIU": func(o *DumpOptions) { o.Ahead = false },
	} {
		t.Run(name, func(t *testing.T) { testMoveSealed(t, dump) })
	}
}

func testMoveSealed(t *testing.T, dump func(*DumpOptions)) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 4)
	c := w.control(t)
	was := c.ask(t)
	const size = 64 * pageSize
	content := make([]byte, size)
	rand.NewChaCha8([32]byte{2}).Read(content)
	type mapping struct {
		name  string
		file  sharedFile
		start int
		// writable says whether it can be made so.
		writable bool
	}
	var mappings []mapping
	add := func(name string, seals, protection, flags int, before, writable bool) {
		t.Helper()
		f := w.source.giveShared(t, name, size)
		_, err := f.WriteAt(content, 0)
		must(t, err)
		seal := func() {
			_, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
			must(t, err)
		}
		if before {
			seal()
		}
		start := c.do(t, "syscall", unix.SYS_MMAP, 0, size, protection, flags, f.number, 0)
		if !before {
			seal()
		}
		mappings = append(mappings, mapping{name, f, start, writable})
	}
	const all = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	add("write", unix.F_SEAL_WRITE, unix.PROT_READ, unix.MAP_SHARED, true, false)
	add("all", all, unix.PROT_READ, unix.MAP_SHARED, true, false)
	add("private", all, unix.PROT_READ, unix.MAP_PRIVATE, true, true)
	add("future", unix.F_SEAL_FUTURE_WRITE, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED, false, true)
	add("size", unix.F_SEAL_GROW, unix.PROT_READ, unix.MAP_SHARED, true, true)
	check := func(init int) {
		t.Helper()
		for _, m := range mappings {
			is, err := readMemory(init, uint64(m.start), size)
			must(t, err)
			if !bytes.Equal(is, content) {
				t.Errorf("%s: what is mapped is another", m.name)
			}
		}
	}
	protect := func() {
		t.Helper()
		for _, m := range mappings {
			result, text := c.command(t, "syscall", unix.SYS_MPROTECT, m.start, size, unix.PROT_READ|unix.PROT_WRITE)
			if (result == 0) != m.writable {
				t.Errorf("%s: making it writable: %d, %s", m.name, result, text)
			}
		}
	}
	check(pod.pid)

	pid, from, to := pod.pid, w.source, w.target
	for range 2 {
		to.keepShared(t)
		m := beginWith(t, e, pid, from, to, dump, func(*RestoreOptions) {})
		for _, f := range mappings {
			f.file.requireSame(t, m.init)
		}
		check(m.init)
		m.commit(t)
		must(t, sharedmem.End(to.images))
		from.empty(t)
		from.clear(t)
		to.clear(t)
		pid, from, to = m.init, to, from
		unharmed(t, c, was)
	}
	protect()
}
