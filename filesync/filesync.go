package filesync

import (
	"errors"
	"time"
)

// Tree is one directory tree, known by the same name at both ends.
type Tree struct {
	// Name is what the stream calls the tree.
	Name string
	// Path is the tree's root directory on this host. It must exist.
	Path string
	Options
}

// Options say how a tree is treated. Both ends should have the same.
type Options struct {
	// Devices allows the device nodes that every container has. Either end
	// fails on others, and without it on any but overlay's whiteouts.
	Devices bool
	// Entry, when not empty, limits the tree to this one entry of Path (and
	// what is below it) and leaves Path's own metadata alone: it is how a
	// volume that is a single file is carried.
	Entry string
}

// Limits bound what a Sink accepts over all its passes. A zero field means
// its default.
type Limits struct {
	// Entries is how many names may be created. Default 50 million.
	Entries int64
	// Bytes is how much file content may be written. Default 1<<50.
	Bytes int64
	// FileSize is the largest size of one file. Default 1<<50.
	FileSize int64
}

func (l Limits) withDefaults() Limits {
	if l.Entries == 0 {
		l.Entries = 50_000_000
	}
	if l.Bytes == 0 {
		l.Bytes = 1 << 50
	}
	if l.FileSize == 0 {
		l.FileSize = 1 << 50
	}
	return l
}

// Stats counts what one pass did.
type Stats struct {
	// Entries is how many names the source walked. The sink leaves it 0.
	Entries int `json:"entries"`
	// Changed is how many entries were created or differ, Removed how many
	// names were removed (a directory counts once).
	Changed int `json:"changed"`
	Removed int `json:"removed"`
	// Examined is how many bytes of content the source read to compare.
	Examined int64 `json:"examined"`
	// Content is how many bytes of file content the stream carried, Bytes how
	// long the stream was.
	Content  int64         `json:"content"`
	Bytes    int64         `json:"bytes"`
	Duration time.Duration `json:"duration"`
}

var (
	// ErrChanged means that a file changed or vanished during a final pass,
	// so something that should have been frozen was not.
	ErrChanged = errors.New("changed during the final pass")
	// ErrStream means that a Sink was sent something that is not a valid
	// pass: it is damaged, of another version, or an attack.
	ErrStream = errors.New("invalid file stream")
	// ErrLimit means that a Sink's limit was exceeded.
	ErrLimit = errors.New("limit exceeded")
	// ErrUnsupported means that a tree holds something that can't be carried:
	// a device node where none is allowed, or another file system.
	ErrUnsupported = errors.New("can't be carried")
)

const (
	// maxName and maxPath are the kernel's NAME_MAX and PATH_MAX (which
	// counts the terminating zero).
	maxName = 255
	maxPath = 4095
	// maxXattrValue is the kernel's XATTR_SIZE_MAX.
	maxXattrValue = 64 << 10
	// maxXattrs bounds the sum of one entry's extended attributes. The
	// kernel's XATTR_LIST_MAX bounds only the names.
	maxXattrs = 4 << 20
	// blockSize is what content is compared and sent by.
	blockSize = 64 << 10
)
