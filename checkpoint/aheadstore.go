package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// aheadStore keeps what was sent ahead in a file without a name, until the pages are
// in their images. CRIU reads an image's pages in the order of their addresses, so it
// can't be told earlier where in the image they will be. The file is mapped, so that pages
// are copied once when they go there, and not twice: that is while the pod is frozen.
type aheadStore struct {
	file *os.File
	size int64
	// mapped are the file's parts, each of aheadPart bytes.
	mapped [][]byte
	// runs are by image, and ascend.
	runs map[uint64][]aheadRun
	// spares are the sizes of files for the images to come, which have room for what came ahead of
	// them: a page costs as much to allocate as to copy, and is copied while the pod is frozen.
	spares map[uint64]int64
	// growing is the one that grew last, that of image growingOf.
	growing   *os.File
	growingOf uint64
}

// aheadRun is where consecutive pages are.
type aheadRun struct {
	start, end uint64
	offset     int64
}

const (
	aheadName = "ahead"
	aheadPart = 4 << 20
)

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
		s.runs, s.spares = map[uint64][]aheadRun{}, map[uint64]int64{}
	}
	if err := s.enlarge(p, f.image, int64(f.pages)*pageSize); err != nil {
		return err
	}
	s.runs[f.image] = known
	for left := int64(f.pages) * pageSize; left > 0; {
		b, err := s.room(p, min(left, pageBuffer))
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(r, b); err != nil {
			return noEOF(err)
		}
		left -= int64(len(b))
	}
	return nil
}

// room makes the file larger, by that many bytes or as many as its last part has place for, and returns
// the new end of it.
func (s *aheadStore) room(p *pageReceiver, n int64) ([]byte, error) {
	part, at := int(s.size/aheadPart), s.size%aheadPart
	n = min(n, aheadPart-at)
	// Memory that could not be had would be a signal later.
	if err := p.allocate(s.file, s.size, n); err != nil {
		return nil, err
	}
	if part == len(s.mapped) {
		b, err := unix.Mmap(int(s.file.Fd()), s.size, aheadPart, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			return nil, os.NewSyscallError("mmap", err)
		}
		s.mapped = append(s.mapped, b)
	}
	s.size += n
	return s.mapped[part][at : at+n], nil
}

// allocate gives a file memory for n bytes from offset on, if the host has them.
func (p *pageReceiver) allocate(file *os.File, offset, n int64) error {
	fd := int(file.Fd())
	if err := p.room.Add(fd, n, 0); err != nil {
		return fmt.Errorf("%w: %w", ErrLimit, err)
	}
	return os.NewSyscallError("fallocate", unix.Fallocate(fd, 0, offset, n))
}

// enlarge makes room for more bytes in the file of an image to come.
func (s *aheadStore) enlarge(p *pageReceiver, image uint64, n int64) error {
	size, known := s.spares[image]
	if !known && len(s.spares) == p.limits.Images {
		return fmt.Errorf("%w: more than %d memory images", ErrLimit, p.limits.Images)
	}
	if s.growing == nil || s.growingOf != image {
		if err := s.closeGrowing(); err != nil {
			return err
		}
		var err error
		if s.growing, err = p.dir.OpenFile(spareName(image), os.O_CREATE|os.O_RDWR, 0o600); err != nil {
			return err
		}
		s.growingOf = image
	}
	if err := p.allocate(s.growing, size, n); err != nil {
		return err
	}
	s.spares[image] = size + n
	return nil
}

func spareName(image uint64) string { return fmt.Sprintf("spare-%d", frame{image: image}.number()) }

func (s *aheadStore) closeGrowing() error {
	if s.growing == nil {
		return nil
	}
	err := s.growing.Close()
	s.growing = nil
	return err
}

// dropSpares removes the files that no image took.
func (s *aheadStore) dropSpares(p *pageReceiver) error {
	errs := []error{s.closeGrowing()}
	for image := range s.spares {
		errs = append(errs, p.dir.Remove(spareName(image)))
	}
	return errors.Join(errs...)
}

// create makes the file for the pages of an image, of what is spare if there is something. It is to
// be cut off where they end.
func (s *aheadStore) create(p *pageReceiver, image uint64, name string) (*os.File, error) {
	if _, spare := s.spares[image]; !spare {
		return p.create(name)
	}
	delete(s.spares, image)
	if err := p.dir.Rename(spareName(image), name); err != nil {
		return nil, err
	}
	return p.dir.OpenFile(name, os.O_RDWR, 0)
}

// find returns the first of the pages from addr on, as many as are there in one piece, at most
// size bytes.
func (s *aheadStore) find(image, addr uint64, size int64) ([]byte, error) {
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
		return nil, fmt.Errorf("the page at %#x of image %d did not come ahead", addr, image>>8)
	}
	r := runs[i]
	offset := r.offset + int64(addr-r.start)
	at := offset % aheadPart
	return s.mapped[offset/aheadPart][at:min(at+min(size, int64(r.end-addr)), aheadPart)], nil
}

// free gives the memory back.
func (s *aheadStore) free() error {
	if s.file == nil {
		return nil
	}
	var errs []error
	for _, b := range s.mapped {
		errs = append(errs, unix.Munmap(b))
	}
	return errors.Join(append(errs, s.file.Close())...)
}

// same puts pages that came ahead into the image.
func (p *pageReceiver) same(f frame) error {
	size, err := p.enter(f)
	if err != nil {
		return err
	}
	p.stats.Ahead += size
	for at := f.addr; size > 0; {
		b, err := p.ahead.find(f.image, at, size)
		if err != nil {
			return err
		}
		if err := p.put(b); err != nil {
			return err
		}
		at, size = at+uint64(len(b)), size-int64(len(b))
	}
	return nil
}
