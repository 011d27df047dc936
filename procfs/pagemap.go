package procfs

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Categories of pages (include/uapi/linux/fs.h;
// Documentation/admin-guide/mm/pagemap.rst).
const (
	PageIsFile    = 1 << 2
	PageIsPresent = 1 << 3
	PageIsSwapped = 1 << 4
	PageIsZero    = 1 << 5 // the one that all zeros share
	PageIsHuge    = 1 << 6
	PageIsGuard   = 1 << 8 // Linux 6.15
)

// PageQuery says which pages are looked for, by categories.
type PageQuery struct {
	// Not are those that a page must not have, Any others of which it must have one.
	Not, Any uint64
	// Tell are those that are told of the pages that are found, Any if it is 0.
	Tell uint64
}

// PageRun is pages of the same categories, one after the other (struct page_region).
type PageRun struct {
	// Start and End are addresses; End is not part of it.
	Start, End uint64
	// Categories are those of PageQuery.Tell that the pages have.
	Categories uint64
}

// OpenPagemap opens a process's page map for ScanPages.
func OpenPagemap(pid int) (*os.File, error) { return os.Open(fmt.Sprintf("/proc/%d/pagemap", pid)) }

// ScanPages calls found for the pages between two addresses, ascending; runs that touch
// may come apart. The kernel puts as many as fit into vec at a time. The error
// wraps ENOTTY where the kernel has no PAGEMAP_SCAN, which came with Linux 6.7.
func ScanPages(pagemap *os.File, start, end uint64, q PageQuery, vec []PageRun, found func(PageRun)) error {
	const scan = 0xc0606610 // PAGEMAP_SCAN, _IOWR('f', 16, struct pm_scan_arg)
	for start < end {
		// struct pm_scan_arg
		arg := struct {
			size, flags, start, end, walkEnd                              uint64
			vec                                                           *PageRun
			vecLen, maxPages                                              uint64
			categoryInverted, categoryMask, categoryAnyOfMask, returnMask uint64
		}{
			start: start, end: end, vec: &vec[0], vecLen: uint64(len(vec)),
			categoryInverted: q.Not, categoryMask: q.Not, categoryAnyOfMask: q.Any, returnMask: q.Tell,
		}
		arg.size = uint64(unsafe.Sizeof(arg))
		if arg.returnMask == 0 {
			arg.returnMask = q.Any
		}
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), scan, uintptr(unsafe.Pointer(&arg)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return os.NewSyscallError("PAGEMAP_SCAN", errno)
		}
		if arg.walkEnd <= start {
			return fmt.Errorf("PAGEMAP_SCAN of %#x-%#x ended at %#x", start, end, arg.walkEnd)
		}
		for _, run := range vec[:n] {
			found(run)
		}
		start = arg.walkEnd
	}
	return nil
}
