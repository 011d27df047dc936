package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMappingText compares the text with what the kernel says of this process, line by line
// of those that CRIU reads.
func TestMappingText(t *testing.T) {
	pid := os.Getpid()
	memory, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(memory)
	if err := unix.Madvise(memory, unix.MADV_DONTFORK); err != nil {
		t.Fatal(err)
	}
	// The runtime may map something meanwhile; then there is no text.
	for range 100 {
		flags, err := readFlags(pid)
		if err != nil {
			t.Fatal(err)
		}
		text, ok := flags.text(pid)
		if !ok {
			continue
		}
		smaps, err := os.ReadFile("/proc/self/smaps")
		if err != nil {
			t.Fatal(err)
		}
		var want []string
		for line := range strings.Lines(string(smaps)) {
			if isMapping([]byte(line)) || strings.HasPrefix(line, "VmFlags:") {
				want = append(want, line)
			}
		}
		if slices.Equal(slices.Collect(strings.Lines(string(text))), want) {
			if !bytes.Contains(text, []byte(" dc ")) {
				t.Error("the flag of madvise is not there")
			}
			return
		}
	}
	t.Error("what CRIU would get is not what the kernel says")
}

func TestMappingTextUnknown(t *testing.T) {
	pid := os.Getpid()
	flags, err := readFlags(pid)
	if err != nil {
		t.Fatal(err)
	}
	locked := flags
	locked.locked = "VmLck:\t 4 kB\n"
	if _, ok := locked.text(pid); ok {
		t.Error("a change of locked memory is not seen")
	}
	for mapping := range flags.flags {
		delete(flags.flags, mapping)
		break
	}
	if _, ok := flags.text(pid); ok {
		t.Error("a mapping without known flags is described")
	}
}

func TestLeftOutTable(t *testing.T) {
	table, err := newLeftOutTable()
	if err != nil {
		t.Fatal(err)
	}
	defer table.close()
	if err := table.set([]MemoryRange{{7, 0x3000, 0x5000}, {5, 0x9000, 0xa000}}, []MemoryRange{{7, 0x1000, 0x2000}}); err != nil {
		t.Fatal(err)
	}
	number := func(at int) uint64 { return binary.NativeEndian.Uint64(table.mem[at:]) }
	if number(16) != 3 || number(rangesAt) != 5 || number(rangesAt+rangeEntry+8) != 0x1000 || number(rangesAt+2*rangeEntry+16) != 0x5000 {
		t.Errorf("the ranges are not in order: %x", table.mem[:rangesAt+3*rangeEntry])
	}
	for i := range 3 {
		if absent, dumped := table.cut(); absent != int64([]int{0, 0x1000, 0x1000}[i]) || dumped != int64([]int{0x4000, 0x3000, 0x2000}[i]) {
			t.Errorf("with %d ranges cut %#x bytes are in no image, %#x were dumped", i, absent, dumped)
		}
		*table.word(rangesAt + i*rangeEntry + 24) |= rangeCut
	}
	if absent, dumped := table.cut(); absent != 0x3000 || dumped != 0 {
		t.Errorf("%#x bytes are in no image, %#x were dumped", absent, dumped)
	}
	table.setText(7, []byte("one\n"), []mappedFile{{0x1000, 0x2000, 0400}})
	table.setText(5, make([]byte, tableSize), nil)
	table.setText(5, []byte("two\n"), nil)
	if at := number(textsAt + textEntry + 8); number(24) != 2 || string(table.mem[at:at+4]) != "two\n" || table.textsRead() != 0 {
		t.Errorf("%d texts, the second at %d", number(24), at)
	}
	for name, ranges := range map[string][]MemoryRange{
		"no process": {{0, 0x1000, 0x2000}}, "empty": {{1, 0x1000, 0x1000}}, "backwards": {{1, 0x2000, 0x1000}},
		"not pages": {{1, 0x1001, 0x2000}}, "overlap": {{1, 0x1000, 0x3000}, {1, 0x2000, 0x4000}},
	} {
		if err := table.set(ranges, nil); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if err := table.set(make([]MemoryRange, maxLeftOut), make([]MemoryRange, 1)); !errors.Is(err, ErrLimit) {
		t.Errorf("error is %v", err)
	}
}
