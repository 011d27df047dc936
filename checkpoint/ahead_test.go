package checkpoint

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// TestPagesSinceAhead: a mapping without private pages is left out of the dump like others, and a
// page that it has later is found.
func TestPagesSinceAhead(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "mapped"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(4 * pageSize); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(file.Fd()), 0, 4*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	start := uint64(uintptr(unsafe.Pointer(&mem[0])))
	numbers, err := procfs.NamespacePIDs(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	a := newAheadPages()
	if err := a.sendProcess(newFrameWriter(io.Discard), os.Getpid(), len(numbers)); err != nil {
		t.Fatal(err)
	}
	mem[2*pageSize] = 7
	claimed, err := a.claim()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(claimed, func(r MemoryRange) bool { return r.Start <= start && start+4*pageSize <= r.End }) {
		t.Errorf("%#x is not among %#x", start, claimed)
	}
	p := a.processes[0]
	if err := a.compareProcess(p, make([]byte, pageBuffer)); err != nil {
		t.Fatal(err)
	}
	var found []pageRun
	for _, r := range p.runs {
		if r.start < start+4*pageSize && start < r.end {
			found = append(found, r)
		}
	}
	if len(found) != 1 || found[0].start != start+2*pageSize || len(found[0].content) != pageSize || found[0].content[0] != 7 {
		t.Errorf("pages of the mapping: %+v", found)
	}
}

func TestRangesOfNeighbours(t *testing.T) {
	p := aheadProcess{pid: 7, mappings: []procfs.Mapping{
		{Start: 0x1000, End: 0x3000, Inode: 1}, {Start: 0x3000, End: 0x4000, Inode: 2}, {Start: 0x5000, End: 0x6000, Inode: 2},
	}}
	want := []MemoryRange{{PID: 7, Start: 0x1000, End: 0x4000}, {PID: 7, Start: 0x5000, End: 0x6000}}
	if got := p.ranges(); !slices.Equal(got, want) {
		t.Errorf("%#x; want %#x", got, want)
	}
}
