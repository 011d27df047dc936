package checkpoint

import (
	"fmt"
	"io"
	"os"
	"slices"
)

// aheadStore keeps what was sent ahead in a file without a name, until the pages are
// in their images. CRIU reads an image's pages in the order of their addresses, so it
// can't be told earlier where in the image they will be.
type aheadStore struct {
	file *os.File
	size int64
	// runs are by image, and ascend.
	runs map[uint64][]aheadRun
	buf  []byte
}

// aheadRun is where consecutive pages are.
type aheadRun struct {
	start, end uint64
	offset     int64
}

const aheadName = "ahead"

// add takes pages, within the limits of p, before the first image is opened.
func (s *aheadStore) add(p *pageReceiver, f frame, r io.Reader) error {
	if err := f.check(); err != nil {
		return err
	}
	if p.stats.Images > 0 || f.kind() != imageTask {
		return fmt.Errorf("pages of image %d of kind %d come ahead too late", f.number(), f.kind())
	}
	if f.pages > uint64(p.limits.Bytes-s.size)/pageSize {
		return fmt.Errorf("%w: more than %d bytes of memory", ErrLimit, p.limits.Bytes)
	}
	run := aheadRun{start: f.addr, end: f.addr + f.pages*pageSize, offset: s.size}
	known := s.runs[f.image]
	if n := len(known); run.end < run.start || n > 0 && run.start < known[n-1].end {
		return fmt.Errorf("pages at %#x come ahead out of order", f.addr)
	}
	if n := len(known); n > 0 && run.start == known[n-1].end && run.offset == known[n-1].offset+int64(known[n-1].end-known[n-1].start) {
		known[n-1].end = run.end
	} else {
		known = append(known, run)
	}
	if s.file == nil {
		var err error
		if s.file, err = p.create(aheadName); err != nil {
			return err
		}
		if err := p.dir.Remove(aheadName); err != nil {
			return err
		}
		s.runs, s.buf = map[uint64][]aheadRun{}, make([]byte, 1<<20)
	}
	s.runs[f.image] = known
	for left := int64(f.pages) * pageSize; left > 0; {
		b := s.buf[:min(left, int64(len(s.buf)))]
		if _, err := io.ReadFull(r, b); err != nil {
			return noEOF(err)
		}
		if err := p.room.Add(int(s.file.Fd()), int64(len(b)), 0); err != nil {
			return fmt.Errorf("%w: %w", ErrLimit, err)
		}
		if _, err := s.file.WriteAt(b, s.size); err != nil {
			return err
		}
		s.size += int64(len(b))
		left -= int64(len(b))
	}
	return nil
}

// find returns where the first of the pages from addr on are, and how many bytes of them
// are there in one piece, at most size.
func (s *aheadStore) find(image, addr uint64, size int64) (offset, n int64, err error) {
	runs := s.runs[image]
	i, found := slices.BinarySearchFunc(runs, addr, func(r aheadRun, addr uint64) int {
		switch {
		case r.end <= addr:
			return -1
		case r.start > addr:
			return 1
		}
		return 0
	})
	if !found {
		return 0, 0, fmt.Errorf("the page at %#x of image %d did not come ahead", addr, image>>8)
	}
	r := runs[i]
	return r.offset + int64(addr-r.start), min(size, int64(r.end-addr)), nil
}

func (s *aheadStore) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// same puts pages that came ahead into the image.
func (p *pageReceiver) same(f frame) error {
	size, err := p.enter(f)
	if err != nil {
		return err
	}
	p.stats.Ahead += size
	for at := f.addr; size > 0; {
		offset, n, err := p.ahead.find(f.image, at, size)
		if err != nil {
			return err
		}
		if err := p.write(io.NewSectionReader(p.ahead.file, offset, n), n); err != nil {
			return err
		}
		at, size = at+uint64(n), size-n
	}
	return nil
}
