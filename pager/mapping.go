package pager

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// mapFile maps a file of the given size, shared and for writing, and makes it if
// it is not there. It is sparse: what was never written costs nothing. The keeper
// does not inherit the mapping.
func mapFile(path string, size int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("mapping a file: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		return nil, fmt.Errorf("mapping %s: %w", path, err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mapping %s: %w", path, err)
	}
	if err := unix.Madvise(b, unix.MADV_DONTFORK); err != nil {
		unix.Munmap(b) // can't fail for what Mmap returned
		return nil, fmt.Errorf("mapping %s: %w", path, err)
	}
	return b, nil
}
