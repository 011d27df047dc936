package checkpoint

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"podd/sharedmem"
)

// sharedReceiver takes the frames of shared memory out of a page stream.
type sharedReceiver struct {
	sink sharedmem.Sink
	// segments were begun; those that are whole are true.
	segments map[uint64]bool
	buf      []byte
}

func (s *sharedReceiver) take(f frame, r io.Reader, stats *PageStats) error {
	if s.sink == nil || f.kind() != imageShmem {
		return errors.New("shared memory comes that was not asked for")
	}
	id := f.number()
	whole, known := s.segments[id]
	if whole || !known && f.op != opSegment {
		return fmt.Errorf("operation %#x on shared memory %d comes too early or too late", f.op, id)
	}
	switch f.op {
	case opSegment:
		if f.pages > sharedmem.MaxName || f.addr > 1<<62 {
			return fmt.Errorf("shared memory of %d bytes has a name of %d", f.addr, f.pages)
		}
		content, err := s.read(r, int(f.pages))
		if err != nil {
			return err
		}
		s.segments[id] = false
		return s.sink.Segment(sharedmem.Segment{ID: id, Name: string(content), Sealable: f.flags == segmentSealable, Size: int64(f.addr)})
	case opSharedPages:
		if f.pages == 0 || f.pages > pageBuffer/pageSize || f.addr > 1<<62 {
			return fmt.Errorf("%d pages of shared memory at %#x", f.pages, f.addr)
		}
		content, err := s.read(r, int(f.pages)*pageSize)
		if err != nil {
			return err
		}
		return s.sink.Pages(id, int64(f.addr), content)
	case opSharedHole:
		if f.pages > 1<<62 || f.addr > 1<<62 {
			return fmt.Errorf("a hole of %d bytes in shared memory at %#x", f.pages, f.addr)
		}
		return s.sink.Hole(id, int64(f.addr), int64(f.pages))
	case opSharedDrop:
		delete(s.segments, id)
		return s.sink.Drop(id)
	}
	s.segments[id] = true
	stats.Segments++
	return nil
}

func (s *sharedReceiver) read(r io.Reader, n int) ([]byte, error) {
	if s.buf == nil {
		s.buf = make([]byte, pageBuffer)
	}
	_, err := io.ReadFull(r, s.buf[:n])
	return s.buf[:n], noEOF(err)
}

// complete drops what CRIU has dumped after all. The images of the others lose the name
// by which CRIU looks for them, so that nobody restores the pod without their content:
// only the library in CRIU knows the other name, and where the content is.
func (s *sharedReceiver) complete(p *pageReceiver) error {
	for id, whole := range s.segments {
		if !whole {
			if err := s.sink.Drop(id); err != nil {
				return err
			}
			continue
		}
		if err := p.rename(id); err != nil {
			return fmt.Errorf("shared memory %d: %w", id, err)
		}
	}
	return nil
}

// rename gives the image of a segment, which must be empty, its other name.
func (p *pageReceiver) rename(id uint64) error {
	name, other := fmt.Sprintf("pagemap-shmem-%d.img", id), fmt.Sprintf("shared-%d.img", id)
	if p.filled[shmemImage(id)] {
		return errors.New("it comes twice")
	}
	if _, err := p.dir.Lstat(other); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(os.ErrExist, err)
	}
	return p.dir.Rename(name, other)
}
