package image

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"podd/pod"
)

const oNonblock = unix.O_NONBLOCK

// maxZstdWindow is the most memory a zstd frame may ask for. It is what the
// zstd program accepts without --long.
const maxZstdWindow = 128 << 20

var (
	gzipMagic = []byte{0x1f, 0x8b}             // RFC 1952, section 2.3.1
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd} // RFC 8878, section 3.1.1
	// Docker once wrote these; nothing does any more.
	bzip2Magic = []byte("BZh")
	xzMagic    = []byte{0xfd, '7', 'z', 'X', 'Z', 0}
)

// decompress returns the expansion of r, or r itself if it is not compressed.
// It goes by the content, as media types in archives are not to be relied on.
// Closing the result does not close r.
func decompress(r io.Reader) (_ io.ReadCloser, compressed bool, err error) {
	buffered := bufio.NewReaderSize(r, 64<<10)
	magic, err := buffered.Peek(6)
	if err != nil && err != io.EOF {
		return nil, false, err
	}
	switch {
	case bytes.HasPrefix(magic, gzipMagic):
		z, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, false, invalid(err)
		}
		return z, true, nil
	case bytes.HasPrefix(magic, zstdMagic):
		z, err := zstd.NewReader(buffered, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxZstdWindow))
		if err != nil {
			return nil, false, invalid(err)
		}
		return z.IOReadCloser(), true, nil
	case bytes.HasPrefix(magic, bzip2Magic), bytes.HasPrefix(magic, xzMagic):
		return nil, false, fmt.Errorf("%w: compressed with bzip2 or xz; gzip and zstd are supported", pod.ErrInvalid)
	}
	return io.NopCloser(buffered), false, nil
}

func invalid(err error) error { return fmt.Errorf("%w: %w", pod.ErrInvalid, err) }

// noSpace marks the errors of a full disk.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("%w: %w", pod.ErrExhausted, err)
	}
	return err
}

// contextReader fails as soon as its context is done.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// limitReader fails, where io.LimitReader ends, so that an oversized stream is
// not taken for a short one.
type limitReader struct {
	r    io.Reader
	left int64
	what string
	max  int64
}

func newLimitReader(r io.Reader, max int64, what string) *limitReader {
	return &limitReader{r: r, left: max, max: max, what: what}
}

func (l *limitReader) Read(p []byte) (int, error) {
	if int64(len(p)) > l.left+1 {
		p = p[:l.left+1]
	}
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return 0, fmt.Errorf("%w: %s has more than %d bytes", pod.ErrInvalid, l.what, l.max)
	}
	return n, err
}
