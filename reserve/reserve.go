// Package reserve keeps a part of every file system, and of memory, out of the
// reach of what other hosts send. Whoever writes bytes of a peer asks it now and
// then and gives up when the rest gets small, for the pods that run here, and
// podd itself, need room to go on.
package reserve

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrFull means that only the reserve is left.
var ErrFull = errors.New("not enough space is left on this host")

// Bytes is what is kept free, of disk and of memory.
const Bytes = 64 << 20

const (
	// freeInodes is the fraction of inodes that is kept.
	freeInodes = 50
	// A look costs microseconds; between two of them these many bytes and
	// names may be written.
	stepBytes = 16 << 20
	stepFiles = 1024
)

// Meter counts what one writer has written. The zero value is ready; it is for
// one goroutine.
type Meter struct{ bytes, files int64 }

// Add notes that bytes and names were, or are about to be, written to the file
// system that the descriptor is on. The error wraps ErrFull.
func (m *Meter) Add(fd int, bytes, files int64) error {
	m.bytes += bytes
	m.files += files
	if m.bytes < stepBytes && m.files < stepFiles {
		return nil
	}
	m.bytes, m.files = 0, 0
	return Check(fd)
}

// Check looks at the file system that the descriptor is on, and at memory if it
// is kept there. The error wraps ErrFull.
func Check(fd int) error {
	var fs unix.Statfs_t
	for {
		err := unix.Fstatfs(fd, &fs)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			return fmt.Errorf("looking for free space: %w", err)
		}
	}
	if int64(fs.Type) == unix.TMPFS_MAGIC {
		// Its size bounds it, and may be used up; what counts is memory.
		available, err := memory()
		if err != nil {
			return fmt.Errorf("looking for free memory: %w", err)
		}
		return check("memory", available)
	}
	if err := check("disk", fs.Bavail*uint64(fs.Frsize)); err != nil {
		return err
	}
	// Some file systems make inodes as they need them and say 0.
	if fs.Files > 0 && fs.Ffree < fs.Files/freeInodes {
		return fmt.Errorf("%w: %d of %d inodes", ErrFull, fs.Ffree, fs.Files)
	}
	return nil
}

func check(what string, free uint64) error {
	if free < Bytes {
		return fmt.Errorf("%w: %d MiB of %s, of which %d are kept free", ErrFull, free>>20, what, Bytes>>20)
	}
	return nil
}

// memory is how much of it programs can still take, in bytes: MemAvailable of
// proc_meminfo(5).
func memory() (uint64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		var kib uint64
		if n, _ := fmt.Sscanf(line, "MemAvailable: %d kB", &kib); n == 1 {
			return kib << 10, nil
		}
	}
	return 0, errors.New("/proc/meminfo has no MemAvailable")
}
