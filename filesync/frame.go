package filesync

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/zeebo/xxh3"
)

const streamHeader = "poddfs\x00\x01"

// maxFrame is the longest payload of a frame, in bytes.
const maxFrame = 256 << 10

const frameHeaderSize = 5

// The frame types; doc.go describes their payloads.
const (
	frameTree    = 'T'
	frameDir     = 'D'
	frameMkdir   = 'm'
	frameFile    = 'f'
	frameData    = 'd'
	frameHole    = 'h'
	frameSymlink = 's'
	frameNode    = 'n'
	frameLink    = 'l'
	frameRemove  = 'r'
	frameXattr   = 'x'
	frameMeta    = 'M'
	frameClear   = 'c'
	frameEnd     = 'E'
)

// encoder writes the frames of one pass. Its first error stays.
type encoder struct {
	w       *bufio.Writer
	sum     *xxh3.Hasher
	payload []byte
	frames  uint64
	bytes   int64
	err     error
}

func newEncoder(w io.Writer) *encoder {
	e := &encoder{w: bufio.NewWriterSize(w, maxFrame), sum: xxh3.New()}
	e.raw([]byte(streamHeader))
	return e
}

func (e *encoder) raw(b []byte) {
	if e.err != nil {
		return
	}
	if _, err := e.w.Write(b); err != nil {
		e.err = fmt.Errorf("writing the file stream: %w", err)
		return
	}
	// The hash never fails.
	_, _ = e.sum.Write(b)
	e.bytes += int64(len(b))
}

// begin starts a payload; the field methods append to it and send ends it.
func (e *encoder) begin() *encoder {
	e.payload = e.payload[:0]
	return e
}

func (e *encoder) uint(v uint64) *encoder {
	e.payload = binary.AppendUvarint(e.payload, v)
	return e
}

func (e *encoder) bool(v bool) *encoder {
	if v {
		return e.uint(1)
	}
	return e.uint(0)
}

// int is zigzag-coded.
func (e *encoder) int(v int64) *encoder {
	e.payload = binary.AppendVarint(e.payload, v)
	return e
}

func (e *encoder) string(s string) *encoder {
	e.uint(uint64(len(s)))
	e.payload = append(e.payload, s...)
	return e
}

func (e *encoder) send(kind byte) { e.sendWith(kind, nil) }

// sendWith sends the payload followed by tail, which saves copying content.
func (e *encoder) sendWith(kind byte, tail []byte) {
	n := len(e.payload) + len(tail)
	if n > maxFrame && e.err == nil {
		e.err = fmt.Errorf("encoding frame %q: payload of %d bytes; at most %d are allowed", kind, n, maxFrame)
	}
	var h [frameHeaderSize]byte
	h[0] = kind
	binary.BigEndian.PutUint32(h[1:], uint32(n))
	e.raw(h[:])
	e.raw(e.payload)
	e.raw(tail)
	e.frames++
}

// finish sends the end frame and flushes.
func (e *encoder) finish() error {
	sum := e.sum.Sum64()
	e.begin().uint(e.frames).uint(sum).send(frameEnd)
	if e.err == nil {
		if err := e.w.Flush(); err != nil {
			e.err = fmt.Errorf("writing the file stream: %w", err)
		}
	}
	return e.err
}

// decoder reads the frames of one pass, and not a byte more.
type decoder struct {
	r      io.Reader
	sum    *xxh3.Hasher
	before uint64 // sum without the frame read last
	buf    []byte
	frames uint64
	bytes  int64
}

func newDecoder(r io.Reader) (*decoder, error) {
	d := &decoder{r: r, sum: xxh3.New()}
	var h [len(streamHeader)]byte
	if err := d.read(h[:]); err != nil {
		return nil, err
	}
	const magic = len(streamHeader) - 1
	switch {
	case string(h[:magic]) != streamHeader[:magic]:
		return nil, fmt.Errorf("%w: it begins with %q", ErrStream, h[:])
	case h[magic] != streamHeader[magic]:
		return nil, fmt.Errorf("%w: version %d; this is version %d", ErrStream, h[magic], streamHeader[magic])
	}
	return d, nil
}

func (d *decoder) read(b []byte) error {
	if _, err := io.ReadFull(d.r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return fmt.Errorf("reading the file stream: %w", err)
	}
	_, _ = d.sum.Write(b)
	d.bytes += int64(len(b))
	return nil
}

// next returns the next frame. The fields are valid until the next call.
func (d *decoder) next() (kind byte, f fields, err error) {
	d.before = d.sum.Sum64()
	var h [frameHeaderSize]byte
	if err := d.read(h[:]); err != nil {
		return 0, fields{}, err
	}
	n := binary.BigEndian.Uint32(h[1:])
	if n > maxFrame {
		return 0, fields{}, fmt.Errorf("%w: frame %q of %d bytes; at most %d are allowed", ErrStream, h[0], n, maxFrame)
	}
	if cap(d.buf) < int(n) {
		d.buf = make([]byte, n)
	}
	d.buf = d.buf[:n]
	if err := d.read(d.buf); err != nil {
		return 0, fields{}, err
	}
	d.frames++
	return h[0], fields{rest: d.buf}, nil
}

// end checks the fields of the end frame against what was read.
func (d *decoder) end(f fields) error {
	frames, sum := f.uint(), f.uint()
	if err := f.end(frameEnd); err != nil {
		return err
	}
	if frames != d.frames-1 || sum != d.before {
		return fmt.Errorf("%w: damaged on the way: %d frames with sum %016x were sent, %d with %016x received",
			ErrStream, frames, sum, d.frames-1, d.before)
	}
	return nil
}

// fields takes a payload apart. After the first mistake every field is zero,
// and end reports it.
type fields struct {
	rest []byte
	bad  bool
}

func (f *fields) uint() uint64 {
	v, n := binary.Uvarint(f.rest)
	if n <= 0 {
		f.bad, f.rest = true, nil
		return 0
	}
	f.rest = f.rest[n:]
	return v
}

func (f *fields) int() int64 {
	v, n := binary.Varint(f.rest)
	if n <= 0 {
		f.bad, f.rest = true, nil
		return 0
	}
	f.rest = f.rest[n:]
	return v
}

func (f *fields) bool() bool {
	v := f.uint()
	if v > 1 {
		f.bad = true
	}
	return v == 1
}

func (f *fields) string() string {
	n := f.uint()
	if n > uint64(len(f.rest)) {
		f.bad, f.rest = true, nil
		return ""
	}
	s := string(f.rest[:n])
	f.rest = f.rest[n:]
	return s
}

// bytes takes all that is left.
func (f *fields) bytes() []byte {
	b := f.rest
	f.rest = nil
	return b
}

func (f *fields) end(kind byte) error {
	if f.bad || len(f.rest) > 0 {
		return fmt.Errorf("%w: malformed frame %q", ErrStream, kind)
	}
	return nil
}
