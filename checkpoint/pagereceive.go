package checkpoint

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"podd/reserve"
	"podd/sharedmem"
)

const (
	// Magic numbers of CRIU's image files (criu/include/magic.h).
	imageMagic   = 0x54564319
	pagemapMagic = 0x56084025
	// firstPages is where a page server begins to number its pages-*.img, so
	// that they don't meet those that the dump itself writes
	// (criu/image.c, up_page_ids_base).
	firstPages = 0x10001
	// directWrite is from how many bytes on pages in memory are not copied to others first.
	directWrite = 32 << 10
	// maxTaskNumber is the highest pid a Linux kernel gives (PID_MAX_LIMIT).
	maxTaskNumber = 1 << 22
)

// ErrLimit means that a peer sent more than it was allowed to.
var ErrLimit = errors.New("limit exceeded")

// PageLimits bound what ReceivePages takes from a peer. Zero means no memory
// at all, so both must be given.
type PageLimits struct {
	// Bytes is the most memory to receive.
	Bytes int64
	// Images is the most address spaces and shared memory segments.
	Images int
}

// ReceivePages reads a page stream and writes it to imagesDir as the
// pagemap-*.img and pages-*.img files that CRIU restores from. Nothing in the
// stream is trusted. It reads exactly the stream and nothing that follows it;
// r should be a *bufio.Reader with a large buffer, for there are many small
// reads. When ctx is done it returns as soon as r does; if r can SetReadDeadline
// that is at once.
//
// shared gets the shared memory that comes beside the images (DumpOptions.Shared); nil
// takes none. What it has at the end is complete, and must be kept for CRIU, by a
// sharedmem.Keeper in imagesDir, as long as the pod may be restored from the images.
//
// images gets the images that come early (DumpOptions.EarlyImages); nil takes none.
//
// On an error the files written so far stay: the caller removes the directory.
//
// free gives memory back that is of no use any more. It must be called, but as that takes
// time, some 15 ms for 100 MiB, not while a pod stands still.
func ReceivePages(ctx context.Context, r io.Reader, imagesDir string, limits PageLimits, shared sharedmem.Sink, images *ImageStore) (stats PageStats, free func() error, err error) {
	dir, err := os.OpenRoot(imagesDir)
	if err != nil {
		return PageStats{}, func() error { return nil }, fmt.Errorf("opening images directory: %w", err)
	}
	defer dir.Close()
	defer interruptible(ctx, r)()
	p := pageReceiver{dir: dir, limits: limits, buf: make([]byte, 0, 1<<20), opened: make(map[uint64]bool), filled: make(map[uint64]bool)}
	p.images = images
	p.shared = sharedReceiver{sink: shared, segments: map[uint64]bool{}}
	err = p.run(ctx, r)
	err = errors.Join(err, p.finish(), p.ahead.dropSpares(&p))
	if err == nil {
		err = p.shared.complete(&p)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return p.stats, p.ahead.free, fmt.Errorf("receiving pages: %w", err)
	}
	return p.stats, p.ahead.free, nil
}

// interruptible makes reads from r fail once ctx is done, if r can do that.
// The function returned ends it.
func interruptible(ctx context.Context, r io.Reader) (release func()) {
	conn, ok := r.(interface{ SetReadDeadline(time.Time) error })
	if !ok {
		return func() {}
	}
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

type pageReceiver struct {
	dir    *os.Root
	limits PageLimits
	stats  PageStats
	opened map[uint64]bool
	// filled are the images that have pages.
	filled map[uint64]bool
	room   reserve.Meter
	ahead  aheadStore
	shared sharedReceiver
	images *ImageStore

	// The image being written. CRIU dumps one after the other.
	image   uint64
	end     uint64 // address after the last page, to see that they ascend
	pagemap *os.File
	entries *bufio.Writer
	pages   *os.File
	buf     []byte // pages not yet written
	scratch []byte
}

func (p *pageReceiver) run(ctx context.Context, r io.Reader) error {
	head := make([]byte, headerSize)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := io.ReadFull(r, head); err != nil {
			return noEOF(err)
		}
		f := parseFrame(head)
		switch f.op {
		case opClose:
			return nil
		case opOpen:
			if err := p.open(f); err != nil {
				return err
			}
		case opAdd:
			if err := p.add(f, r); err != nil {
				return err
			}
		case opAhead:
			if err := p.ahead.add(p, f, r); err != nil {
				return err
			}
		case opSame:
			if err := p.same(f); err != nil {
				return err
			}
		case opSegment, opSharedPages, opSharedHole, opSharedDrop, opSharedWhole:
			if err := p.shared.take(f, r, &p.stats); err != nil {
				return err
			}
		case opImage:
			if p.images == nil {
				return errors.New("an image comes early that was not asked for")
			}
			if err := p.images.take(f, r, p.dir); err != nil {
				return err
			}
		default:
			return fmt.Errorf("unknown operation %#x", f.op)
		}
	}
}

func (p *pageReceiver) open(f frame) error {
	if err := p.finish(); err != nil {
		return err
	}
	if err := f.check(); err != nil {
		return err
	}
	if p.stats.Images >= p.limits.Images {
		return fmt.Errorf("%w: more than %d memory images", ErrLimit, p.limits.Images)
	}
	if p.opened[f.image] {
		return fmt.Errorf("memory image %d of kind %d comes twice", f.number(), f.kind())
	}
	p.opened[f.image] = true
	name := fmt.Sprintf("pagemap-shmem-%d.img", f.number())
	if f.kind() == imageTask {
		if f.number() == 0 || f.number() > maxTaskNumber {
			return fmt.Errorf("memory of impossible process %d", f.number())
		}
		name = fmt.Sprintf("pagemap-%d.img", f.number())
	}
	id := uint32(firstPages + p.stats.Images)
	p.stats.Images++
	var err error
	if p.pagemap, err = p.create(name); err != nil {
		return err
	}
	p.entries = bufio.NewWriterSize(p.pagemap, 64<<10)
	if p.pages, err = p.ahead.create(p, f.image, fmt.Sprintf("pages-%d.img", id)); err != nil {
		return err
	}
	p.image, p.end = f.image, 0
	b := binary.LittleEndian.AppendUint32(nil, imageMagic)
	b = binary.LittleEndian.AppendUint32(b, pagemapMagic)
	if _, err := p.entries.Write(b); err != nil {
		return err
	}
	// pagemap_head (images/pagemap.proto).
	return p.writeEntry(appendVarint(nil, 1, uint64(id)))
}

func (p *pageReceiver) create(name string) (*os.File, error) {
	return p.dir.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
}

// enter writes the entry of pages that follow.
func (p *pageReceiver) enter(f frame) (size int64, err error) {
	if err := f.check(); err != nil {
		return 0, err
	}
	if p.pagemap == nil || f.image != p.image {
		return 0, fmt.Errorf("pages for memory image %d of kind %d, which is not open", f.number(), f.kind())
	}
	if f.addr < p.end {
		return 0, fmt.Errorf("pages at %#x come after those up to %#x", f.addr, p.end)
	}
	if f.pages > uint64(math.MaxInt64/pageSize) || int64(f.pages)*pageSize > p.limits.Bytes-p.stats.Bytes {
		return 0, fmt.Errorf("%w: more than %d bytes of memory", ErrLimit, p.limits.Bytes)
	}
	size = int64(f.pages) * pageSize
	// Only the very last page of the address space wraps this to 0, and
	// nothing can follow it.
	if p.end = f.addr + uint64(size); p.end == 0 {
		p.end = math.MaxUint64
	}
	// pagemap_entry. CRIU before 4.2 reads the number of pages from field 2,
	// 4.2 from field 5. What is here must not be waited for: no page is lazy.
	e := appendVarint(p.scratch[:0], 1, f.addr)
	e = appendVarint(e, 2, min(f.pages, math.MaxUint32))
	e = appendVarint(e, 4, uint64(f.flags&^pageLazy))
	e = appendVarint(e, 5, f.pages)
	p.scratch = e
	if err := p.writeEntry(e); err != nil {
		return 0, err
	}
	p.filled[f.image] = true
	p.stats.Pages += int64(f.pages)
	p.stats.Bytes += size
	return size, nil
}

func (p *pageReceiver) add(f frame, r io.Reader) error {
	size, err := p.enter(f)
	if err != nil {
		return err
	}
	return p.write(r, size)
}

// write takes pages from r.
func (p *pageReceiver) write(r io.Reader, size int64) error {
	for size > 0 {
		n := int(min(size, int64(cap(p.buf)-len(p.buf))))
		if _, err := io.ReadFull(r, p.buf[len(p.buf):len(p.buf)+n]); err != nil {
			return noEOF(err)
		}
		p.buf = p.buf[:len(p.buf)+n]
		size -= int64(n)
		if len(p.buf) == cap(p.buf) {
			if err := p.flushPages(); err != nil {
				return err
			}
		}
	}
	return nil
}

// put takes pages that are in memory.
func (p *pageReceiver) put(b []byte) error {
	if len(b) <= cap(p.buf)-len(p.buf) && len(b) < directWrite {
		p.buf = append(p.buf, b...)
		return nil
	}
	if err := p.flushPages(); err != nil {
		return err
	}
	return p.writePages(b)
}

func appendVarint(b []byte, field protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), v)
}

// writeEntry writes one protobuf message of an image: its size, then itself.
func (p *pageReceiver) writeEntry(b []byte) error {
	var size [4]byte
	binary.LittleEndian.PutUint32(size[:], uint32(len(b)))
	if _, err := p.entries.Write(size[:]); err != nil {
		return err
	}
	_, err := p.entries.Write(b)
	return err
}

func (p *pageReceiver) flushPages() error {
	err := p.writePages(p.buf)
	p.buf = p.buf[:0]
	return err
}

func (p *pageReceiver) writePages(b []byte) error {
	if err := p.room.Add(int(p.pages.Fd()), int64(len(b)), 1); err != nil {
		return fmt.Errorf("%w: %w", ErrLimit, err)
	}
	_, err := p.pages.Write(b)
	return err
}

// finish closes the image being written, if there is one.
func (p *pageReceiver) finish() error {
	var err error
	if p.pages != nil {
		err = errors.Join(p.flushPages(), p.cutOff(), p.pages.Close())
		p.pages = nil
	}
	if p.pagemap != nil {
		err = errors.Join(err, p.entries.Flush(), p.pagemap.Close())
		p.pagemap = nil
	}
	return err
}

// cutOff ends the file of pages where they end: it may have been made larger.
func (p *pageReceiver) cutOff() error {
	end, err := p.pages.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	return p.pages.Truncate(end)
}
