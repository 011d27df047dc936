package checkpoint

import (
	"bufio"
	"io"
	"sync"

	"podd/sharedmem"
)

// frameWriter writes frames of the page stream; those that CRIU sends, and beside them
// those of shared memory: it is the sharedmem.Sink of a dump.
type frameWriter struct {
	mu     sync.Mutex
	out    *bufio.Writer
	way    io.Writer // of out
	header []byte
}

func newFrameWriter(w io.Writer) *frameWriter {
	return &frameWriter{out: bufio.NewWriterSize(w, pageBuffer), way: w, header: make([]byte, 0, headerSize)}
}

// write writes a frame with what belongs to it. An error is an errSendPages.
func (w *frameWriter) write(f frame, content []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.append(f, content)
}

// append does that while mu is held.
func (w *frameWriter) append(f frame, content []byte) error {
	if _, err := w.out.Write(f.append(w.header[:0])); err != nil {
		return passError(err)
	}
	_, err := w.out.Write(content)
	return passError(err)
}

func (w *frameWriter) flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return passError(w.out.Flush())
}

// push does not leave what was written in a buffer of the way to the target, either.
func (w *frameWriter) push() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.out.Flush(); err != nil {
		return passError(err)
	}
	if b, ok := w.way.(interface{ Flush() error }); ok {
		return passError(b.Flush())
	}
	return nil
}

func shmemImage(id uint64) uint64 { return id<<8 | imageShmem }

func (w *frameWriter) Segment(s sharedmem.Segment) error {
	f := frame{op: opSegment, pages: uint64(len(s.Name)), addr: uint64(s.Size), image: shmemImage(s.ID)}
	if s.Sealable {
		f.flags = segmentSealable
	}
	return w.write(f, []byte(s.Name))
}

func (w *frameWriter) Pages(id uint64, offset int64, content []byte) error {
	return w.write(frame{op: opSharedPages, flags: pagePresent, pages: uint64(len(content)) / pageSize, addr: uint64(offset), image: shmemImage(id)}, content)
}

func (w *frameWriter) Hole(id uint64, offset, length int64) error {
	return w.write(frame{op: opSharedHole, pages: uint64(length), addr: uint64(offset), image: shmemImage(id)}, nil)
}

func (w *frameWriter) Drop(id uint64) error {
	return w.write(frame{op: opSharedDrop, image: shmemImage(id)}, nil)
}
