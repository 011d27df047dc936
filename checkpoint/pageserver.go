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

// servePages is the page server of one dump: it answers CRIU's questions on
// criu itself, so that no round trip to the target is waited for while the
// pod is frozen, and passes the rest on to w. header is the size of CRIU's
// headers. What was compared beside CRIU comes in between, where its address is.
// It returns after the end of the stream was passed on and CRIU told.
func servePages(ctx context.Context, criu io.ReadWriter, w io.Writer, header int, ahead *aheadPages) (PageStats, error) {
	var stats PageStats
	in := bufio.NewReaderSize(criu, pageBuffer)
	out := bufio.NewWriterSize(w, pageBuffer)
	head := make([]byte, header)
	wire := make([]byte, 0, headerSize)
	pass := func(f frame) error {
		_, err := out.Write(f.append(wire[:0]))
		return passError(err)
	}
	between := merger{ahead: ahead, out: out, stats: &stats}
	for {
		if _, err := io.ReadFull(in, head); err != nil {
			return stats, fmt.Errorf("reading pages from CRIU: %w", noEOF(err))
		}
		f := parseFrame(head)
		switch f.op {
		case opOpen:
			if err := between.open(ctx, f.image); err != nil {
				return stats, err
			}
			stats.Images++
			if err := pass(f); err != nil {
				return stats, err
			}
			// One byte: there is no parent image.
			if _, err := criu.Write([]byte{0}); err != nil {
				return stats, fmt.Errorf("answering CRIU: %w", err)
			}
		case opParent:
			// An int32: there is no parent image.
			if _, err := criu.Write(make([]byte, 4)); err != nil {
				return stats, fmt.Errorf("answering CRIU: %w", err)
			}
		case opAdd:
			if !f.hasData() {
				if err := pass(f); err != nil {
					return stats, err
				}
				continue
			}
			if f.pages > 1<<50 {
				return stats, fmt.Errorf("CRIU announces %d pages", f.pages)
			}
			if err := between.before(f); err != nil {
				return stats, err
			}
			if err := pass(f); err != nil {
				return stats, err
			}
			size := int64(f.pages) * pageSize
			if err := copyPages(out, in, size); err != nil {
				return stats, err
			}
			stats.Pages += int64(f.pages)
			stats.Bytes += size
		case opClose, opEndForce:
			if err := between.end(ctx); err != nil {
				return stats, err
			}
			if err := pass(frame{op: opClose}); err != nil {
				return stats, err
			}
			if err := passError(out.Flush()); err != nil {
				return stats, err
			}
			// An int32: everything is stored.
			if _, err := criu.Write(binary.LittleEndian.AppendUint32(nil, 0)); err != nil {
				return stats, fmt.Errorf("answering CRIU: %w", err)
			}
			return stats, nil
		default:
			return stats, fmt.Errorf("CRIU sends pages with the unknown operation %#x", f.op)
		}
	}
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
