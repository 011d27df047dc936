package pagesync

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrUnsupported means that this kernel can't say which pages a process has:
// PAGEMAP_SCAN came with Linux 6.7.
var ErrUnsupported = errors.New("the kernel has no PAGEMAP_SCAN")

// The ioctl of /proc/PID/pagemap and its categories of pages
// (include/uapi/linux/fs.h; Documentation/admin-guide/mm/pagemap.rst).
const (
	pagemapScan = 0xc0606610 // _IOWR('f', 16, struct pm_scan_arg)

	pageIsFile    = 1 << 2
	pageIsPresent = 1 << 3
	pageIsSwapped = 1 << 4
	pageIsPFNZero = 1 << 5
	pageIsGuard   = 1 << 8 // Linux 6.15
)

// pmScanArg is struct pm_scan_arg.
type pmScanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages       uint64
	categoryInverted, categoryMask, categoryAnyofMask, returnMask uint64
}

// pageRegion is struct page_region.
type pageRegion struct {
	start, end, categories uint64
}

// guardCategory is pageIsGuard where the kernel knows it, else 0.
var guardCategory = sync.OnceValues(func() (uint64, error) {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return 0, fmt.Errorf("trying PAGEMAP_SCAN: %w", err)
	}
	defer f.Close()
	var vec [1]pageRegion
	for _, category := range []uint64{pageIsGuard, 0} {
		// A range of no pages: only the arguments are checked.
		_, _, err = scan(f, span{0, PageSize}, vec[:], category)
		if err == nil {
			return category, nil
		}
	}
	return 0, fmt.Errorf("%w: %w", ErrUnsupported, err)
})

// Supported returns ErrUnsupported where the kernel lacks what a Source needs.
func Supported() error {
	_, err := guardCategory()
	return err
}

// scan fills vec with runs of pages in s that hold content: in memory or
// swapped out, not the shared zero page, not a guard. It returns their number
// and where it stopped, which is s.end unless vec is full.
func scan(pagemap *os.File, s span, vec []pageRegion, guard uint64) (n int, end uint64, err error) {
	arg := pmScanArg{
		start:             s.start,
		end:               s.end,
		vec:               uint64(uintptr(unsafe.Pointer(&vec[0]))),
		vecLen:            uint64(len(vec)),
		categoryInverted:  pageIsPFNZero | pageIsFile | guard,
		categoryMask:      pageIsPFNZero | pageIsFile | guard,
		categoryAnyofMask: pageIsPresent | pageIsSwapped,
		returnMask:        pageIsPresent | pageIsSwapped,
	}
	arg.size = uint64(unsafe.Sizeof(arg))
	for {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, pagemap.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
		runtime.KeepAlive(vec)
		switch errno {
		case 0:
			return int(r), arg.walkEnd, nil
		case unix.EINTR:
		default:
			return 0, 0, os.NewSyscallError("PAGEMAP_SCAN", errno)
		}
	}
}

// scanner finds the pages of one process.
type scanner struct {
	pagemap *os.File
	guard   uint64
	vec     []pageRegion
}

func newScanner(pid int) (*scanner, error) {
	guard, err := guardCategory()
	if err != nil {
		return nil, err
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, err
	}
	return &scanner{pagemap: f, guard: guard, vec: make([]pageRegion, 512)}, nil
}

// each calls found for each run of pages in s that hold content, ascending.
// Runs that touch may come apart.
func (sc *scanner) each(s span, found func(span)) error {
	for s.start < s.end {
		n, end, err := scan(sc.pagemap, s, sc.vec, sc.guard)
		if err != nil {
			return err
		}
		for _, r := range sc.vec[:n] {
			found(span{r.start, r.end})
		}
		if end <= s.start {
			return fmt.Errorf("PAGEMAP_SCAN of %#x-%#x ended at %#x", s.start, s.end, end)
		}
		s.start = end
	}
	return nil
}

// clone returns another scanner of the same process, for another goroutine.
func (sc *scanner) clone() *scanner {
	return &scanner{pagemap: sc.pagemap, guard: sc.guard, vec: make([]pageRegion, len(sc.vec))}
}

func (sc *scanner) close() { sc.pagemap.Close() }
