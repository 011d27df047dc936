package pagesync

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/klauspost/compress/zstd"
)

const (
	// PageSize is the size of a page in bytes; only machines with such pages are
	// supported.
	PageSize = 4096
	// MaxPayload is the longest payload of a frame, in bytes, also once it is
	// decompressed.
	MaxPayload = 1 << 20
	// maxRegions is the most regions in a frame.
	maxRegions = 1 << 15

	headerSize = 24
	regionSize = 24
	// maxPID is the highest pid a Linux kernel gives (PID_MAX_LIMIT).
	maxPID = 1 << 22
	// maxAddress is the end of a process's memory with five-level page tables
	// (Documentation/arch/x86/x86_64/5level-paging.rst).
	maxAddress = 1 << 56
)

// ErrFrame means that a peer sent what is not a frame, or that a frame that
// should be sent is none.
var ErrFrame = errors.New("malformed frame")

// Kind is what a frame says; see the package's documentation.
type Kind uint8

const (
	KindRegions Kind = 1
	KindData    Kind = 2
	KindZero    Kind = 3
	KindSame    Kind = 4
	KindAbsent  Kind = 5
	KindMark    Kind = 6
	KindDone    Kind = 7

	KindHello Kind = 16
	KindAck   Kind = 17
	KindWant  Kind = 18
)

var kindNames = map[Kind]string{
	KindRegions: "regions", KindData: "data", KindZero: "zero", KindSame: "same", KindAbsent: "absent",
	KindMark: "mark", KindDone: "done", KindHello: "hello", KindAck: "ack", KindWant: "want",
}

func (k Kind) String() string {
	if name, ok := kindNames[k]; ok {
		return name
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// pages reports whether frames of the kind are about pages of a process.
func (k Kind) pages() bool { return k >= KindData && k <= KindAbsent || k == KindWant }

// The flags of a frame. A flag has its meaning only with its kind.
const (
	FlagFinal uint8 = 1 // regions
	FlagZstd  uint8 = 2 // data
	FlagAgain uint8 = 1 // hello
	FlagFault uint8 = 1 // want
)

// allowed returns the flags a kind can have.
func (k Kind) allowed() uint8 {
	switch k {
	case KindRegions, KindHello, KindWant:
		return 1
	case KindData:
		return FlagZstd
	}
	return 0
}

// Done is the number of the ack that says that the pager's store is complete.
const Done = math.MaxUint64

// Region is a range of a process's memory.
type Region struct {
	PID        int    // in the pod's pid namespace
	Start, End uint64 // addresses, whole pages; End is exclusive
}

// Bytes returns the length of the region.
func (r Region) Bytes() int64 { return int64(r.End - r.Start) }

// Pages returns the number of pages in the region.
func (r Region) Pages() int { return int((r.End - r.Start) / PageSize) }

func (r Region) String() string { return fmt.Sprintf("%d:%#x-%#x", r.PID, r.Start, r.End) }

func (r Region) check() error {
	if r.PID < 1 || r.PID > maxPID || r.Start >= r.End || r.End > maxAddress || r.Start%PageSize != 0 || r.End%PageSize != 0 {
		return fmt.Errorf("%w: impossible region %v", ErrFrame, r)
	}
	return nil
}

// Frame is one message. Which fields count depends on Kind; those that don't
// are zero.
type Frame struct {
	Kind  Kind
	Flags uint8
	// PID, Address and Pages say which pages are meant (data, zero, same, absent,
	// want).
	PID     int
	Address uint64
	Pages   int
	// Number of a mark or an ack.
	Number uint64
	// Regions of a regions frame.
	Regions []Region
	// Payload of a data frame: the pages' content, or with FlagZstd one zstd
	// frame of it. A Reader has decompressed it.
	Payload []byte
}

// Region returns the pages that the frame is about.
func (f Frame) Region() Region {
	return Region{f.PID, f.Address, f.Address + uint64(f.Pages)*PageSize}
}

func (f Frame) check() error {
	if f.Kind.pages() {
		if f.Pages < 1 || f.Pages > math.MaxUint32 || f.Address > maxAddress {
			return fmt.Errorf("%w: %v of %d pages at %#x", ErrFrame, f.Kind, f.Pages, f.Address)
		}
		if err := f.Region().check(); err != nil {
			return err
		}
	} else if f.PID != 0 || f.Address != 0 || f.Pages != 0 {
		return fmt.Errorf("%w: %v with pages", ErrFrame, f.Kind)
	}
	if f.Flags&^f.Kind.allowed() != 0 {
		return fmt.Errorf("%w: %v with flags %#x", ErrFrame, f.Kind, f.Flags)
	}
	switch f.Kind {
	case KindRegions:
		if len(f.Regions) > maxRegions {
			return fmt.Errorf("%w: %d regions; at most %d are allowed", ErrFrame, len(f.Regions), maxRegions)
		}
		last := Region{}
		for _, r := range f.Regions {
			if err := r.check(); err != nil {
				return err
			}
			if r.PID < last.PID || r.PID == last.PID && r.Start < last.End {
				return fmt.Errorf("%w: region %v after %v", ErrFrame, r, last)
			}
			last = r
		}
	case KindData:
		size := f.Pages * PageSize
		if size > MaxPayload || f.Flags&FlagZstd == 0 && len(f.Payload) != size || len(f.Payload) == 0 || len(f.Payload) > MaxPayload {
			return fmt.Errorf("%w: payload of %d bytes for %d pages", ErrFrame, len(f.Payload), f.Pages)
		}
	}
	return nil
}

// Writer writes frames through a buffer. It is not safe for concurrent use.
type Writer struct {
	w       *bufio.Writer
	bytes   int64
	regions []byte
}

// NewWriter returns a Writer to w.
func NewWriter(w io.Writer) *Writer { return &Writer{w: bufio.NewWriterSize(w, 64<<10)} }

// Write writes a frame; Flush sends it. It keeps nothing of f. The error is
// ErrFrame if the Reader would refuse the frame, or else the connection's.
func (w *Writer) Write(f Frame) error {
	if err := f.check(); err != nil {
		return err
	}
	payload := f.Payload
	number := f.Address
	switch f.Kind {
	case KindData:
	case KindRegions:
		b := w.regions[:0]
		for _, r := range f.Regions {
			b = binary.LittleEndian.AppendUint64(b, uint64(r.PID))
			b = binary.LittleEndian.AppendUint64(b, r.Start)
			b = binary.LittleEndian.AppendUint64(b, r.End)
		}
		w.regions, payload = b, b
	default:
		payload = nil
		if f.Kind == KindMark || f.Kind == KindAck {
			number = f.Number
		}
	}
	var h [headerSize]byte
	h[0], h[1] = byte(f.Kind), f.Flags
	binary.LittleEndian.PutUint32(h[4:], uint32(f.PID))
	binary.LittleEndian.PutUint64(h[8:], number)
	binary.LittleEndian.PutUint32(h[16:], uint32(f.Pages))
	binary.LittleEndian.PutUint32(h[20:], uint32(len(payload)))
	w.bytes += int64(len(h) + len(payload))
	if _, err := w.w.Write(h[:]); err != nil {
		return fmt.Errorf("writing %v frame: %w", f.Kind, err)
	}
	if _, err := w.w.Write(payload); err != nil {
		return fmt.Errorf("writing %v frame: %w", f.Kind, err)
	}
	return nil
}

// Flush sends what is in the buffer.
func (w *Writer) Flush() error {
	if err := w.w.Flush(); err != nil {
		return fmt.Errorf("writing frames: %w", err)
	}
	return nil
}

// Bytes returns how many bytes all frames written so far take on the wire.
func (w *Writer) Bytes() int64 { return w.bytes }

// Reader reads frames. It trusts nothing: a frame that it returns is well-formed,
// and it never holds more than MaxPayload bytes of content. It is not safe for
// concurrent use.
type Reader struct {
	r       *bufio.Reader
	payload []byte
	plain   []byte
	regions []Region
	zstd    *zstd.Decoder
}

// NewReader returns a Reader from r; it reads ahead.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 64<<10)} }

// Next returns the next frame; its Payload and Regions are valid until the call
// after. The error is io.EOF where the stream ends between two frames, ErrFrame
// for one that is malformed, io.ErrUnexpectedEOF for one that is cut.
func (r *Reader) Next() (Frame, error) {
	var h [headerSize]byte
	if _, err := io.ReadFull(r.r, h[:]); err != nil {
		if err == io.EOF {
			return Frame{}, err
		}
		return Frame{}, fmt.Errorf("reading a frame: %w", err)
	}
	f := Frame{
		Kind: Kind(h[0]), Flags: h[1],
		PID:     int(binary.LittleEndian.Uint32(h[4:])),
		Address: binary.LittleEndian.Uint64(h[8:]),
		Pages:   int(binary.LittleEndian.Uint32(h[16:])),
	}
	length := int(binary.LittleEndian.Uint32(h[20:]))
	if _, ok := kindNames[f.Kind]; !ok || h[2] != 0 || h[3] != 0 {
		return Frame{}, fmt.Errorf("%w: header % x", ErrFrame, h)
	}
	if length > MaxPayload || length != 0 && f.Kind != KindData && f.Kind != KindRegions {
		return Frame{}, fmt.Errorf("%w: %v with %d bytes", ErrFrame, f.Kind, length)
	}
	if f.Kind == KindMark || f.Kind == KindAck {
		f.Number, f.Address = f.Address, 0
	}
	if cap(r.payload) < length {
		r.payload = make([]byte, MaxPayload)
	}
	payload := r.payload[:length]
	if _, err := io.ReadFull(r.r, payload); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Frame{}, fmt.Errorf("reading %v frame: %w", f.Kind, err)
	}
	switch f.Kind {
	case KindData:
		f.Payload = payload
	case KindRegions:
		regions, err := r.parseRegions(payload)
		if err != nil {
			return Frame{}, err
		}
		f.Regions = regions
	}
	if err := f.check(); err != nil {
		return Frame{}, err
	}
	if f.Kind == KindData && f.Flags&FlagZstd != 0 {
		plain, err := r.decompress(f)
		if err != nil {
			return Frame{}, err
		}
		f.Flags, f.Payload = f.Flags&^FlagZstd, plain
	}
	return f, nil
}

func (r *Reader) parseRegions(b []byte) ([]Region, error) {
	if len(b)%regionSize != 0 {
		return nil, fmt.Errorf("%w: regions of %d bytes", ErrFrame, len(b))
	}
	regions := r.regions[:0]
	for ; len(b) > 0; b = b[regionSize:] {
		pid := binary.LittleEndian.Uint64(b)
		if pid > maxPID {
			return nil, fmt.Errorf("%w: region of process %d", ErrFrame, pid)
		}
		regions = append(regions, Region{int(pid), binary.LittleEndian.Uint64(b[8:]), binary.LittleEndian.Uint64(b[16:])})
	}
	r.regions = regions
	return regions, nil
}

func (r *Reader) decompress(f Frame) ([]byte, error) {
	if r.zstd == nil {
		d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
			zstd.WithDecoderMaxMemory(MaxPayload), zstd.WithDecodeAllCapLimit(true))
		if err != nil {
			return nil, fmt.Errorf("making a decompressor: %w", err)
		}
		r.zstd, r.plain = d, make([]byte, MaxPayload)
	}
	size := f.Pages * PageSize
	plain, err := r.zstd.DecodeAll(f.Payload, r.plain[:0:size])
	if err != nil {
		return nil, fmt.Errorf("%w: decompressing %d pages: %w", ErrFrame, f.Pages, err)
	}
	if len(plain) != size {
		return nil, fmt.Errorf("%w: %d pages decompress to %d bytes", ErrFrame, f.Pages, len(plain))
	}
	return plain, nil
}
