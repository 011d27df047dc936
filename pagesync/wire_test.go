package pagesync

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"testing"

	"github.com/klauspost/compress/zstd"
)

func compress(t testing.TB, b []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	return e.EncodeAll(b, nil)
}

func content(pages int) []byte {
	b := make([]byte, pages*PageSize)
	for i := range b {
		b[i] = byte(i / 7)
	}
	return b
}

func encode(t testing.TB, frames ...Frame) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, f := range frames {
		if err := w.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if w.Bytes() != int64(b.Len()) {
		t.Errorf("%d bytes were written; Bytes says %d", b.Len(), w.Bytes())
	}
	return b.Bytes()
}

func TestFrames(t *testing.T) {
	big := content(MaxPayload / PageSize)
	frames := []Frame{
		{Kind: KindHello, Flags: FlagAgain},
		{Kind: KindRegions, Regions: []Region{{1, 0x1000, 0x3000}, {1, 0x3000, 0x4000}, {2, 0x1000, maxAddress}}},
		{Kind: KindRegions, Flags: FlagFinal, Regions: []Region{}},
		{Kind: KindData, PID: 1, Address: 0x1000, Pages: 2, Payload: content(2)},
		{Kind: KindData, Flags: FlagZstd, PID: 1, Address: 0x1000, Pages: 256, Payload: compress(t, big)},
		{Kind: KindZero, PID: maxPID, Address: maxAddress - PageSize, Pages: 1},
		{Kind: KindSame, PID: 7, Address: 0x7fff00000000, Pages: 1 << 31},
		{Kind: KindAbsent, PID: 7, Address: 0, Pages: 1},
		{Kind: KindMark, Number: 3},
		{Kind: KindDone},
		{Kind: KindAck, Number: Done},
		{Kind: KindWant, Flags: FlagFault, PID: 1, Address: 0x2000, Pages: 1},
	}
	r := NewReader(bytes.NewReader(encode(t, frames...)))
	for i, want := range frames {
		got, err := r.Next()
		if err != nil {
			t.Fatalf("frame %d: %v", i, err)
		}
		if want.Flags&FlagZstd != 0 && want.Kind == KindData {
			want.Flags, want.Payload = 0, big
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("frame %d is %+v; want %+v", i, got, want)
		}
	}
	if _, err := r.Next(); err != io.EOF {
		t.Errorf("at the end: %v", err)
	}
}

// The layout is a format between hosts of different versions.
func TestFrameLayout(t *testing.T) {
	got := encode(t,
		Frame{Kind: KindWant, Flags: FlagFault, PID: 0x11, Address: 0x2233000, Pages: 0x44},
		Frame{Kind: KindRegions, Flags: FlagFinal, Regions: []Region{{5, 0x6000, 0x7000}}})
	want := []byte{
		18, 1, 0, 0, 0x11, 0, 0, 0, 0, 0x30, 0x23, 2, 0, 0, 0, 0, 0x44, 0, 0, 0, 0, 0, 0, 0,
		1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0, 0,
		5, 0, 0, 0, 0, 0, 0, 0, 0, 0x60, 0, 0, 0, 0, 0, 0, 0, 0x70, 0, 0, 0, 0, 0, 0,
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got % x\nwant % x", got, want)
	}
}

func TestWriterRefuses(t *testing.T) {
	many := make([]Region, maxRegions+1)
	for i := range many {
		many[i] = Region{1, uint64(i) * PageSize, uint64(i+1) * PageSize}
	}
	for name, f := range map[string]Frame{
		"unaligned":           {Kind: KindZero, PID: 1, Address: 1, Pages: 1},
		"no pages":            {Kind: KindZero, PID: 1, Address: 0x1000},
		"process 0":           {Kind: KindZero, Address: 0x1000, Pages: 1},
		"impossible process":  {Kind: KindZero, PID: maxPID + 1, Address: 0x1000, Pages: 1},
		"end of memory":       {Kind: KindZero, PID: 1, Address: maxAddress - PageSize, Pages: 2},
		"overflow":            {Kind: KindZero, PID: 1, Address: ^uint64(0) - PageSize + 1, Pages: 2},
		"too many pages":      {Kind: KindZero, PID: 1, Pages: 1 << 32},
		"short payload":       {Kind: KindData, PID: 1, Pages: 2, Payload: content(1)},
		"long payload":        {Kind: KindData, PID: 1, Pages: 257, Payload: content(257)},
		"nothing compressed":  {Kind: KindData, Flags: FlagZstd, PID: 1, Pages: 1},
		"too much compressed": {Kind: KindData, Flags: FlagZstd, PID: 1, Pages: 257, Payload: []byte{1}},
		"unknown flag":        {Kind: KindZero, Flags: 1, PID: 1, Pages: 1},
		"pages of a mark":     {Kind: KindMark, PID: 1},
		"regions descend":     {Kind: KindRegions, Regions: []Region{{2, 0x1000, 0x2000}, {1, 0x1000, 0x2000}}},
		"regions overlap":     {Kind: KindRegions, Regions: []Region{{1, 0x1000, 0x3000}, {1, 0x2000, 0x4000}}},
		"region empty":        {Kind: KindRegions, Regions: []Region{{1, 0x1000, 0x1000}}},
		"too many regions":    {Kind: KindRegions, Regions: many},
	} {
		if err := NewWriter(io.Discard).Write(f); !errors.Is(err, ErrFrame) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReaderRefuses(t *testing.T) {
	change := func(f Frame, offset int, b byte) []byte {
		e := encode(t, f)
		e[offset] = b
		return e
	}
	zero := Frame{Kind: KindZero, PID: 1, Address: 0x1000, Pages: 1}
	data := Frame{Kind: KindData, PID: 1, Address: 0x1000, Pages: 1, Payload: content(1)}
	regions := Frame{Kind: KindRegions, Regions: []Region{{1, 0x1000, 0x2000}}}
	zipped := func(pages int, b []byte) []byte {
		return encode(t, Frame{Kind: KindData, Flags: FlagZstd, PID: 1, Address: 0x1000, Pages: pages, Payload: b})
	}
	bomb := binary.LittleEndian.AppendUint32(encode(t, data)[:20], MaxPayload+1)
	for name, c := range map[string]struct {
		stream []byte
		want   error
	}{
		"unknown kind":      {change(zero, 0, 99), ErrFrame},
		"reserved":          {change(zero, 2, 1), ErrFrame},
		"flag":              {change(zero, 1, 4), ErrFrame},
		"unaligned":         {change(zero, 8, 1), ErrFrame},
		"payload of zero":   {change(zero, 20, 1), ErrFrame},
		"payload of mark":   {change(Frame{Kind: KindMark}, 21, 1), ErrFrame},
		"process of mark":   {change(Frame{Kind: KindMark}, 4, 1), ErrFrame},
		"length":            {bomb, ErrFrame},
		"regions cut":       {change(regions, 20, 23), ErrFrame},
		"region's reserved": {change(regions, headerSize+4, 1), ErrFrame},
		"cut header":        {encode(t, zero)[:headerSize-1], io.ErrUnexpectedEOF},
		"cut payload":       {encode(t, data)[:headerSize+100], io.ErrUnexpectedEOF},
		"no payload":        {encode(t, data)[:headerSize], io.ErrUnexpectedEOF},
		"not zstd":          {zipped(1, []byte("nothing")), ErrFrame},
		"less in zstd":      {zipped(2, compress(t, content(1))), ErrFrame},
		"more in zstd":      {zipped(1, compress(t, content(2))), ErrFrame},
		"much more in zstd": {zipped(1, compress(t, make([]byte, 64<<20))), ErrFrame},
	} {
		if f, err := NewReader(bytes.NewReader(c.stream)).Next(); !errors.Is(err, c.want) {
			t.Errorf("%s: %+v, %v", name, f.Kind, err)
		}
	}
}

// FuzzReader feeds anything: what the Reader takes the Writer can say, and it
// means the same.
func FuzzReader(f *testing.F) {
	f.Add(encode(f, Frame{Kind: KindHello}, Frame{Kind: KindAck, Number: Done}, Frame{Kind: KindWant, Flags: FlagFault, PID: 1, Pages: 3}))
	f.Add(encode(f, Frame{Kind: KindRegions, Flags: FlagFinal, Regions: []Region{{1, 0x1000, 0x2000}, {2, 0, 0x1000}}}, Frame{Kind: KindDone}))
	f.Add(encode(f, Frame{Kind: KindData, PID: 1, Address: 0x1000, Pages: 1, Payload: content(1)}))
	f.Add(encode(f, Frame{Kind: KindData, Flags: FlagZstd, PID: 1, Address: 0x1000, Pages: 3, Payload: compress(f, content(3))}))
	f.Fuzz(func(t *testing.T, stream []byte) {
		r := NewReader(bytes.NewReader(stream))
		for {
			frame, err := r.Next()
			if err != nil {
				return
			}
			again, err := NewReader(bytes.NewReader(encode(t, frame))).Next()
			if err != nil || !reflect.DeepEqual(again, frame) {
				t.Fatalf("%+v is read as %+v, %v", frame, again, err)
			}
		}
	})
}
