package checkpoint

import (
	"encoding/binary"
	"fmt"
	"time"
)

// The page stream is CRIU's own protocol between a dump and a page server
// (criu/page-xfer.c) without the answers, in the layout of CRIU 4.2, whatever
// version speaks at the source: frames of a header and, for opAdd, the pages.
// opClose ends it. The other operations are podd's own: opAhead, before all others, is of
// pages that will probably be dumped, and opSame takes the place of opAdd for those
// that were. Shared memory that CRIU leaves out (package sharedmem) is in frames that may
// stand between any two others; opSharedWhole, just before opClose, says of which segments
// that is true. So may whole image files, opImage.
//
//	offset 0  u32 operation, with page flags in the upper 16 bits
//	offset 8  u64 number of pages
//	offset 16 u64 address of the first page
//	offset 24 u64 image: its number << 8 | its kind
//
// All numbers are little-endian; only little-endian machines are supported.
const (
	headerSize = 32
	// headerSizeOld is that of CRIU before 4.2, where the number of pages
	// is an u32 at offset 4.
	headerSizeOld = 24

	pageSize = 4096
)

// Operations.
const (
	opOpen     = 4      // OPEN2: an image begins
	opParent   = 5      // is there a parent image? asked in incremental dumps
	opAdd      = 6      // ADD_F: pages
	opClose    = 0x1023 // CLOSE: end, sent over a network connection
	opEndForce = 0x1024 // FORCE_CLOSE: end, sent over an inherited socket

	opAhead = 0x2001 // pages of an image that has not begun
	opSame  = 0x2002 // pages with the content of opAhead; none follows

	opSegment     = 0x2003 // size in place of the address, and the name, so many bytes, follows
	opSharedPages = 0x2004 // pages, as by opAdd; the address is an offset
	opSharedHole  = 0x2005 // there is nothing; a length in bytes in place of pages
	opSharedDrop  = 0x2006 // the segment is not wanted any more
	opSharedWhole = 0x2007 // everything of the segment has come, and CRIU has left it out

	opImage = 0x2008 // an image file: its size in place of pages, that of its name in place of the address; name and content follow
)

// segmentSealable is the flag of opSegment for a memfd that can be sealed.
const segmentSealable = 1

// Page flags.
const (
	pageLazy    = 1 << 1 // may be restored on demand
	pagePresent = 1 << 2 // the content follows
)

// Kinds of images.
const (
	imageTask  = 1 // memory of a process; the number is its pid in the pod
	imageShmem = 2 // shared memory; the number is CRIU's own
)

// frame is the header of one frame.
type frame struct {
	op    uint32
	flags uint32
	pages uint64
	addr  uint64
	image uint64
}

func (f frame) kind() uint64   { return f.image & 0xff }
func (f frame) number() uint64 { return f.image >> 8 }

// hasData reports whether pages follow the header.
func (f frame) hasData() bool { return f.op == opAdd && f.flags&pagePresent != 0 }

func (f frame) append(b []byte) []byte {
	b = binary.LittleEndian.AppendUint32(b, f.op|f.flags<<16)
	b = binary.LittleEndian.AppendUint32(b, 0)
	b = binary.LittleEndian.AppendUint64(b, f.pages)
	b = binary.LittleEndian.AppendUint64(b, f.addr)
	return binary.LittleEndian.AppendUint64(b, f.image)
}

// parseFrame decodes a header of headerSize or headerSizeOld bytes.
func parseFrame(b []byte) frame {
	cmd := binary.LittleEndian.Uint32(b)
	f := frame{op: cmd & 0xffff, flags: cmd >> 16}
	if len(b) == headerSizeOld {
		f.pages = uint64(binary.LittleEndian.Uint32(b[4:]))
		f.addr = binary.LittleEndian.Uint64(b[8:])
		f.image = binary.LittleEndian.Uint64(b[16:])
		return f
	}
	f.pages = binary.LittleEndian.Uint64(b[8:])
	f.addr = binary.LittleEndian.Uint64(b[16:])
	f.image = binary.LittleEndian.Uint64(b[24:])
	return f
}

// check reports what is wrong with the numbers of an opAdd or opOpen frame.
func (f frame) check() error {
	if k := f.kind(); k != imageTask && k != imageShmem {
		return fmt.Errorf("unknown kind of image %d", k)
	}
	if f.op == opOpen {
		return nil
	}
	if f.flags != pagePresent && f.flags != pagePresent|pageLazy {
		return fmt.Errorf("page flags %#x are not those of a complete dump", f.flags)
	}
	if f.addr%pageSize != 0 {
		return fmt.Errorf("page address %#x is not a multiple of the page size", f.addr)
	}
	// The whole address space has 2^52 pages.
	if f.pages == 0 || f.pages > 1<<52 || f.pages*pageSize-1 > ^uint64(0)-f.addr {
		return fmt.Errorf("%d pages at %#x", f.pages, f.addr)
	}
	return nil
}

// PageStats counts what a page stream carried.
type PageStats struct {
	// Images is the number of address spaces and shared memory segments.
	Images int
	// Pages is the number of pages, Bytes their size in bytes.
	Pages int64
	Bytes int64
	// Ahead is the size of the pages among them that had been sent ahead
	// (DumpOptions.Ahead), in bytes.
	Ahead int64
	// Segments is how many segments of shared memory came beside the images, and
	// Shared what of them was sent once the pod was frozen, in bytes.
	Segments int
	Shared   int64
	// SharedWait is how long CRIU had to wait until that was sent.
	SharedWait time.Duration
}
