//go:build root

package pager

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mapping makes memory at an address, which userfaultfd is to fill if that is not 0.
func mapping(t *testing.T, at, pages uintptr, uffd userfault) {
	t.Helper()
	const flags = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS | unix.MAP_FIXED_NOREPLACE
	if _, _, errno := unix.Syscall6(unix.SYS_MMAP, at, pages*pageSize, unix.PROT_READ|unix.PROT_WRITE, flags, ^uintptr(0), 0); errno != 0 {
		t.Fatal("mmap", errno)
	}
	t.Cleanup(func() { unix.Syscall(unix.SYS_MUNMAP, at, pages*pageSize, 0) })
	r := struct{ start, len, mode, ioctls uint64 }{uint64(at), uint64(pages) * pageSize, 1, 0} // missing pages
	const register = 0xc020aa00                                                                // _IOWR(0xAA, 0x00, struct uffdio_register)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(uffd), register, uintptr(unsafe.Pointer(&r))); errno != 0 {
		t.Fatal("UFFDIO_REGISTER", errno)
	}
}

// newUserfault makes a userfaultfd for memory of this process.
func newUserfault(t *testing.T) userfault {
	t.Helper()
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|unix.O_NONBLOCK, 0, 0)
	if errno != 0 {
		t.Fatal("userfaultfd", errno)
	}
	api := struct{ api, features, ioctls uint64 }{0xaa, 1<<2 | 1<<3 | 1<<6, 0} // events of remap, remove, unmap
	const setAPI = 0xc018aa3f                                                  // _IOWR(0xAA, 0x3F, struct uffdio_api)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, setAPI, uintptr(unsafe.Pointer(&api))); errno != 0 {
		t.Fatal("UFFDIO_API", errno)
	}
	return userfault(fd)
}

// pending reports whether there is a message to be read.
func (u userfault) pending() bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(u), Events: unix.POLLIN}}, 0)
	return err == nil && n > 0
}

// TestMovedUnmappedGrown moves memory, unmaps part of it, and has a mapping before it grow in its
// place, which is no event: all while the pager is late. There are zeros then, not what was moved.
func TestMovedUnmappedGrown(t *testing.T) {
	const (
		from      = 0x200000000000
		to        = 0x200000100000
		pages     = 5
		neighbour = to - pageSize
	)
	uffd := newUserfault(t)
	mapping(t, from, pages, uffd)
	mapping(t, neighbour, 1, uffd)
	t.Cleanup(func() { unix.Syscall(unix.SYS_MUNMAP, neighbour, 16*pageSize, 0) })
	t.Cleanup(func() { unix.Close(int(uffd)) }) // first of all: nobody waits for events any more

	dir := t.TempDir()
	h, err := newHandler(dir, slog.New(slog.DiscardHandler), newContent(t, 0), nil, freezer(""))
	must(t, err)
	s, err := newSpace(filepath.Join(dir, "space-1"), 1, 1)
	must(t, err)
	s.uffd = uffd
	s.extents = []extent{{start: from, end: from + pages*pageSize, slot: 0}}

	done := make(chan unix.Errno)
	go func() {
		_, _, errno := unix.Syscall6(unix.SYS_MREMAP, from, pages*pageSize, pages*pageSize, unix.MREMAP_MAYMOVE|unix.MREMAP_FIXED, to, 0)
		if errno == 0 {
			_, _, errno = unix.Syscall(unix.SYS_MUNMAP, to, 3*pageSize, 0)
		}
		if errno == 0 {
			_, _, errno = unix.Syscall6(unix.SYS_MREMAP, neighbour, pageSize, 3*pageSize, 0, 0, 0)
		}
		done <- errno
	}()
	pending := func() {
		t.Helper()
		for deadline := time.Now().Add(time.Minute); !s.uffd.pending(); {
			if time.Now().After(deadline) {
				t.Fatal("no event")
			}
		}
	}
	next := func(event byte, start uint64) {
		t.Helper()
		pending()
		m := h.journal.message
		if some, err := h.journal.read(s); !some || err != nil || m.event() != event || m.first() != start {
			t.Fatalf("%t, %v, event %#x from %#x", some, err, m.event(), m.first())
		}
	}
	next(eventRemap, from)
	must(t, h.obey(s, h.journal.message))
	next(eventUnmap, from) // is part of the move
	pending()
	must(t, h.obey(s, h.journal.message))
	next(eventUnmap, to)
	if errno := <-done; errno != 0 {
		t.Fatal(errno)
	}
	must(t, h.obey(s, h.journal.message))
	for page := range uint64(pages) {
		i, found := s.find(to + page*pageSize)
		gone := !found || s.has(s.extents[i].at(to+page*pageSize))
		if gone != (page < 3) {
			t.Errorf("page %d is given up: %t", page, gone)
		}
	}
	if s.unsettled {
		t.Error("not all is settled")
	}
}
