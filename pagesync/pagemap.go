package pagesync

import (
	"errors"
	"fmt"
	"os"
	"sync"

	"podd/procfs"
)

// ErrUnsupported means that this kernel can't say which pages a process has:
// PAGEMAP_SCAN came with Linux 6.7.
var ErrUnsupported = errors.New("the kernel has no PAGEMAP_SCAN")

// guardCategory is procfs.PageIsGuard where the kernel knows it, else 0.
var guardCategory = sync.OnceValues(func() (uint64, error) {
	f, err := procfs.OpenPagemap(os.Getpid())
	if err != nil {
		return 0, fmt.Errorf("trying PAGEMAP_SCAN: %w", err)
	}
	defer f.Close()
	for _, category := range []uint64{procfs.PageIsGuard, 0} {
		// A range of no pages: only the arguments are checked.
		err = procfs.ScanPages(f, 0, PageSize, contents(category), make([]procfs.PageRun, 1), func(procfs.PageRun) {})
		if err == nil {
			return category, nil
		}
	}
	return 0, fmt.Errorf("%w: %w", ErrUnsupported, err)
})

// contents are pages that hold content: in memory or swapped out, not the shared zero page,
// not a guard.
func contents(guard uint64) procfs.PageQuery {
	return procfs.PageQuery{
		Not: procfs.PageIsZero | procfs.PageIsFile | guard,
		Any: procfs.PageIsPresent | procfs.PageIsSwapped,
	}
}

// Supported returns ErrUnsupported where the kernel lacks what a Source needs.
func Supported() error {
	_, err := guardCategory()
	return err
}

// scanner finds the pages of one process.
type scanner struct {
	pagemap *os.File
	guard   uint64
	vec     []procfs.PageRun
}

func newScanner(pid int) (*scanner, error) {
	guard, err := guardCategory()
	if err != nil {
		return nil, err
	}
	f, err := procfs.OpenPagemap(pid)
	if err != nil {
		return nil, err
	}
	return &scanner{pagemap: f, guard: guard, vec: make([]procfs.PageRun, 512)}, nil
}

// each calls found for each run of pages in s that hold content, ascending.
// Runs that touch may come apart.
func (sc *scanner) each(s span, found func(span)) error {
	return procfs.ScanPages(sc.pagemap, s.start, s.end, contents(sc.guard), sc.vec, func(r procfs.PageRun) {
		found(span{r.Start, r.End})
	})
}

// clone returns another scanner of the same process, for another goroutine.
func (sc *scanner) clone() *scanner {
	return &scanner{pagemap: sc.pagemap, guard: sc.guard, vec: make([]procfs.PageRun, len(sc.vec))}
}

func (sc *scanner) close() { sc.pagemap.Close() }
