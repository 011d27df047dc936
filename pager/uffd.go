package pager

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"

	"podd/pagesync"
)

const pageSize = pagesync.PageSize

// From linux/userfaultfd.h; golang.org/x/sys/unix has none of it. The requests
// are those of the architectures that share asm-generic/ioctl.h (x86, arm64,
// riscv).
const (
	uffdioWake     = 0x8010aa02 // _IOR(0xAA, 0x02, struct uffdio_range)
	uffdioCopy     = 0xc028aa03 // _IOWR(0xAA, 0x03, struct uffdio_copy)
	uffdioZeropage = 0xc020aa04 // _IOWR(0xAA, 0x04, struct uffdio_zeropage)

	uffdioCopyModeWP = 1 << 1

	eventPagefault = 0x12
	eventFork      = 0x13
	eventRemap     = 0x14
	eventRemove    = 0x15
	eventUnmap     = 0x16
)

// messageSize is the size of struct uffd_msg.
const messageSize = 32

// message is a struct uffd_msg: what a program whose memory is filled has done.
type message [messageSize]byte

func (m *message) event() byte        { return m[0] }
func (m *message) u64(at int) uint64  { return binary.NativeEndian.Uint64(m[at:]) }
func (m *message) forked() int        { return int(int32(binary.NativeEndian.Uint32(m[8:]))) }
func (m *message) fault() uint64      { return m.u64(16) &^ (pageSize - 1) }
func (m *message) first() uint64      { return m.u64(8) }  // of remap: from; of remove and unmap: start
func (m *message) second() uint64     { return m.u64(16) } // of remap: to; of remove and unmap: end
func (m *message) remapBytes() uint64 { return m.u64(24) }

// userfault is the descriptor of a userfaultfd.
type userfault int

// copyIn is UFFDIO_COPY: it fills pages at address with content and wakes who
// waits for them. n is the number of bytes that were filled, be there an error or
// not. EAGAIN means that less was filled, or with n = 0 that the process is
// changing its mappings and an event says so; EEXIST that there is a page; ENOENT
// that no mapping of this userfaultfd has the whole range; ESRCH that the process
// is gone.
func (u userfault) copyIn(address uint64, content []byte) (n int, err error) {
	a := struct {
		dst, src, len, mode uint64
		copied              int64
	}{dst: address, src: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(content)))), len: uint64(len(content))}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u), uffdioCopy, uintptr(unsafe.Pointer(&a)))
	return outcome(a.copied, errno)
}

// zero is UFFDIO_ZEROPAGE, with copyIn's results.
func (u userfault) zero(address, bytes uint64) (n int, err error) {
	a := struct {
		start, len, mode uint64
		zeroed           int64
	}{start: address, len: bytes}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u), uffdioZeropage, uintptr(unsafe.Pointer(&a)))
	return outcome(a.zeroed, errno)
}

func outcome(n int64, errno unix.Errno) (int, error) {
	switch {
	case errno == 0:
		return int(n), nil
	case errno == unix.EAGAIN && n > 0:
		return int(n), errno
	}
	return 0, errno
}

// wake is UFFDIO_WAKE: whoever waits for a page in the range looks again.
func (u userfault) wake(address, bytes uint64) error {
	a := struct{ start, len uint64 }{address, bytes}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u), uffdioWake, uintptr(unsafe.Pointer(&a))); errno != 0 {
		return errno
	}
	return nil
}

// probe reports whether the range is in one mapping that is registered with a
// userfaultfd, and changes nothing: a copy that asks for write protection is
// refused with EINVAL there, since CRIU registers for missing pages alone, and
// with ENOENT anywhere else (mm/userfaultfd.c, mfill_atomic).
func (u userfault) probe(address, bytes uint64) (bool, error) {
	var page [1]byte // is not read
	a := struct {
		dst, src, len, mode uint64
		copied              int64
	}{address, uint64(uintptr(unsafe.Pointer(&page))), bytes, uffdioCopyModeWP, 0}
	switch _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(u), uffdioCopy, uintptr(unsafe.Pointer(&a))); errno {
	case unix.EINVAL:
		return true, nil
	case unix.ENOENT:
		return false, nil
	case 0:
		return false, unix.ENOTSUP // it was registered for write protection, by whom?
	default:
		return false, errno
	}
}

// nowhere is an address that no mapping has: the last page below the kernel's.
const nowhere = 1<<47 - 2*pageSize

// changing reports whether the process is changing its mappings, or has done so
// and the event was not read.
func (u userfault) changing() bool {
	_, err := u.zero(nowhere, pageSize)
	return err == unix.EAGAIN
}

// alive reports whether the process has not ended, which the kernel looks at before
// it looks for a mapping.
func (u userfault) alive() bool {
	_, err := u.zero(nowhere, pageSize)
	return err != unix.ESRCH
}

// read reads a message, without waiting, if there is one. A fork's comes with a
// descriptor.
func (u userfault) read(to *message) (some bool, err error) {
	for {
		_, _, errno := unix.Syscall(unix.SYS_READ, uintptr(u), uintptr(unsafe.Pointer(to)), messageSize)
		switch errno {
		case 0:
			return true, nil
		case unix.EINTR:
		case unix.EAGAIN:
			return false, nil
		default:
			return false, errno
		}
	}
}
