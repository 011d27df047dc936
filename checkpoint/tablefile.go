package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tableFile is a table that podd writes and the library in CRIU reads, by a file that both
// map. All numbers are u64 in the machine's byte order, the first is a magic one.
type tableFile struct {
	file *os.File
	mem  []byte
}

// newTableFile makes an empty table of so many bytes. Memory is used only for what is
// written.
func newTableFile(name string, magic uint64, size int) (*tableFile, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("creating the table %s: %w", name, err)
	}
	t := &tableFile{file: os.NewFile(uintptr(fd), name)}
	if err = t.file.Truncate(int64(size)); err == nil {
		t.mem, err = unix.Mmap(fd, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		t.file.Close()
		return nil, fmt.Errorf("creating the table %s: %w", name, err)
	}
	*t.word(0) = magic
	return t, nil
}

// word is the number at an offset, a multiple of its size.
func (t *tableFile) word(offset int) *uint64 {
	return (*uint64)(unsafe.Pointer(&t.mem[offset]))
}

// put writes numbers one after the other, and returns where the next one goes.
func (t *tableFile) put(offset int, numbers ...uint64) int {
	for _, n := range numbers {
		*t.word(offset) = n
		offset += 8
	}
	return offset
}

func (t *tableFile) close() error {
	err := unix.Munmap(t.mem)
	t.mem = nil
	return errors.Join(err, t.file.Close())
}
