// Package reserve keeps a part of every file system, and of memory, out of the
// reach of what other hosts send. Whoever writes bytes of a peer asks it now and
// then and gives up when the rest gets small, for the pods that run here, and
// podd itself, need room to go on.
package reserve

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"podd/procfs"
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
		_, available, err := procfs.Memory()
		if err != nil {
			return fmt.Errorf("looking for free memory: %w", err)
		}
		return check("memory", uint64(available))
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
