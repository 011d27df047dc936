package checkpoint

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// pageBuffer is the size of the buffers in the way of the pages. CRIU sends
// what one pipe holds (1 MiB at most) at a time.
const pageBuffer = 256 << 10

// pageServer is the page server of one dump: it answers CRIU's questions on
// criu itself, so that no round trip to the target is waited for while the
// pod is frozen, and passes the rest on to out. What was compared beside CRIU comes
// in between, where its address is.
type pageServer struct {
	criu io.ReadWriter
	out  *frameWriter
	// header is the size of CRIU's headers.
	header int
	ahead  *aheadPages
	// opens is true if somebody else has answered that an image is open: the library.
	opens bool
	// complete is called before the end, unless it is nil.
	complete func(*PageStats) error

	in    *bufio.Reader
	merge merger
	stats PageStats
}

// run serves until the end of the stream was passed on and CRIU told.
func (s *pageServer) run(ctx context.Context) (PageStats, error) {
	s.in = bufio.NewReaderSize(s.criu, pageBuffer)
	s.merge = merger{ahead: s.ahead, out: s.out, stats: &s.stats}
	head := make([]byte, s.header)
	for {
		if _, err := io.ReadFull(s.in, head); err != nil {
			return s.stats, fmt.Errorf("reading pages from CRIU: %w", noEOF(err))
		}
		f := parseFrame(head)
		end := f.op == opClose || f.op == opEndForce
		if end && s.complete != nil {
			if err := s.complete(&s.stats); err != nil {
				return s.stats, err
			}
		}
		if err := s.serve(ctx, f); err != nil || end {
			return s.stats, err
		}
	}
}

// serve obeys one frame. Nobody else's is written meanwhile.
func (s *pageServer) serve(ctx context.Context, f frame) error {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	switch f.op {
	case opOpen:
		if !s.opens {
			// One byte: there is no parent image. CRIU need not wait for what follows.
			if err := s.answer([]byte{0}); err != nil {
				return err
			}
		}
		if err := s.merge.open(ctx, f.image); err != nil {
			return err
		}
		s.stats.Images++
		return s.out.append(f, nil)
	case opParent:
		// An int32: there is no parent image.
		return s.answer(make([]byte, 4))
	case opAdd:
		if !f.hasData() {
			return s.out.append(f, nil)
		}
		if f.pages > 1<<50 {
			return fmt.Errorf("CRIU announces %d pages", f.pages)
		}
		if err := s.merge.before(f); err != nil {
			return err
		}
		if err := s.out.append(f, nil); err != nil {
			return err
		}
		size := int64(f.pages) * pageSize
		if err := copyPages(s.out.out, s.in, size); err != nil {
			return err
		}
		s.stats.Pages += int64(f.pages)
		s.stats.Bytes += size
		return nil
	case opClose, opEndForce:
		if err := s.merge.end(ctx); err != nil {
			return err
		}
		if err := s.out.append(frame{op: opClose}, nil); err != nil {
			return err
		}
		if err := passError(s.out.out.Flush()); err != nil {
			return err
		}
		// An int32: everything is stored.
		return s.answer(binary.LittleEndian.AppendUint32(nil, 0))
	}
	return fmt.Errorf("CRIU sends pages with the unknown operation %#x", f.op)
}

func (s *pageServer) answer(b []byte) error {
	if _, err := s.criu.Write(b); err != nil {
		return fmt.Errorf("answering CRIU: %w", err)
	}
	return nil
}

// errSendPages marks a failure of the way to the target, not of CRIU.
var errSendPages = errors.New("sending pages")

func passError(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", errSendPages, err)
}

// copyPages passes on so many bytes of pages, which come from in.
func copyPages(out *bufio.Writer, in *bufio.Reader, size int64) error {
	for size > 0 {
		// Peek avoids a third buffer between the two.
		b, err := in.Peek(int(min(size, pageBuffer)))
		if len(b) == 0 {
			return fmt.Errorf("reading pages from CRIU: %w", noEOF(err))
		}
		if _, err := out.Write(b); err != nil {
			return passError(err)
		}
		if _, err := in.Discard(len(b)); err != nil {
			return fmt.Errorf("reading pages from CRIU: %w", noEOF(err))
		}
		size -= int64(len(b))
	}
	return nil
}

// noEOF makes an end of input in the middle of something an error of its own.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
