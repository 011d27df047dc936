package procfs

import (
	"os"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestScanPages finds those pages of a mapping that were written to, though they don't fit into
// the vector.
func TestScanPages(t *testing.T) {
	size := uint64(os.Getpagesize())
	memory, err := unix.Mmap(-1, 0, 64*int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(memory)
	if err := unix.Madvise(memory, unix.MADV_NOHUGEPAGE); err != nil {
		t.Fatal(err)
	}
	start := uint64(uintptr(unsafe.Pointer(&memory[0])))
	var want []PageRun
	for _, page := range []uint64{0, 3, 7, 8, 9, 63} {
		memory[page*size] = 1
		at := start + page*size
		if last := len(want) - 1; last >= 0 && want[last].End == at {
			want[last].End += size
			continue
		}
		want = append(want, PageRun{at, at + size, PageIsPresent})
	}
	pagemap, err := OpenPagemap(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer pagemap.Close()
	var got []PageRun
	note := func(r PageRun) {
		// Pages may be swapped out meanwhile.
		r.Categories |= PageIsPresent
		r.Categories &^= PageIsSwapped
		got = append(got, r)
	}
	written := PageQuery{Not: PageIsFile | PageIsZero, Any: PageIsPresent | PageIsSwapped}
	if err := ScanPages(pagemap, start, start+uint64(len(memory)), written, make([]PageRun, 2), note); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	got = nil
	if err := ScanPages(pagemap, start, start+uint64(len(memory)), PageQuery{Any: PageIsFile}, make([]PageRun, 2), note); err != nil || got != nil {
		t.Errorf("%+v, %v", got, err)
	}
}
