package checkpoint

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// criuClient says to a page server what a dump says, in the layout of 4.2 or
// the older one.
type criuClient struct {
	t    *testing.T
	conn net.Conn
	old  bool
}

func (c criuClient) send(f frame, data []byte) {
	c.t.Helper()
	b := f.append(nil)
	if c.old {
		b = binary.LittleEndian.AppendUint32(nil, f.op|f.flags<<16)
		b = binary.LittleEndian.AppendUint32(b, uint32(f.pages))
		b = binary.LittleEndian.AppendUint64(b, f.addr)
		b = binary.LittleEndian.AppendUint64(b, f.image)
	}
	if _, err := c.conn.Write(append(b, data...)); err != nil {
		c.t.Error(err)
	}
}

func (c criuClient) expect(answer ...byte) {
	c.t.Helper()
	b := make([]byte, len(answer))
	if _, err := io.ReadFull(c.conn, b); err != nil || !bytes.Equal(b, answer) {
		c.t.Errorf("answer %v, %v; want %v", b, err, answer)
	}
}

func pagesOf(n int, fill byte) []byte {
	b := bytes.Repeat([]byte{fill}, n*pageSize)
	for i := range n {
		binary.LittleEndian.PutUint32(b[i*pageSize:], uint32(i))
	}
	return b
}

const (
	task7  = 7<<8 | imageTask
	shmem9 = 9<<8 | imageShmem
)

// sampleStream is a valid stream: two images, several runs of pages.
func sampleStream() []byte {
	var b []byte
	b = frame{op: opOpen, image: task7}.append(b)
	b = frame{op: opAdd, flags: pagePresent, pages: 2, addr: 0x10000, image: task7}.append(b)
	b = append(b, pagesOf(2, 'a')...)
	b = frame{op: opAdd, flags: pagePresent | pageLazy, pages: 1, addr: 0x20000, image: task7}.append(b)
	b = append(b, pagesOf(1, 'b')...)
	b = frame{op: opOpen, image: shmem9}.append(b)
	b = frame{op: opAdd, flags: pagePresent, pages: 1, addr: 0, image: shmem9}.append(b)
	b = append(b, pagesOf(1, 'c')...)
	return frame{op: opClose}.append(b)
}

func TestServePages(t *testing.T) {
	// opens: the library answers that an image is open.
	for _, c := range []struct{ old, opens bool }{{}, {old: true}, {opens: true}} {
		old := c.old
		ours, theirs := net.Pipe()
		var stream bytes.Buffer
		type result struct {
			stats PageStats
			err   error
		}
		done := make(chan result)
		header := headerSize
		if old {
			header = headerSizeOld
		}
		go func() {
			stats, err := (&pageServer{criu: ours, out: newFrameWriter(&stream), header: header, opens: c.opens}).run(t.Context())
			done <- result{stats, err}
		}()
		criu := criuClient{t, theirs, old}
		open := func(image uint64) {
			if criu.send(frame{op: opOpen, image: image}, nil); !c.opens {
				criu.expect(0)
			}
		}
		criu.send(frame{op: opParent, image: task7}, nil)
		criu.expect(0, 0, 0, 0)
		open(task7)
		criu.send(frame{op: opAdd, flags: pagePresent, pages: 2, addr: 0x10000, image: task7}, pagesOf(2, 'a'))
		criu.send(frame{op: opAdd, flags: pagePresent | pageLazy, pages: 1, addr: 0x20000, image: task7}, pagesOf(1, 'b'))
		open(shmem9)
		criu.send(frame{op: opAdd, flags: pagePresent, pages: 1, addr: 0, image: shmem9}, pagesOf(1, 'c'))
		criu.send(frame{op: opEndForce}, nil)
		criu.expect(0, 0, 0, 0)
		r := <-done
		want := PageStats{Images: 2, Pages: 4, Bytes: 4 * pageSize}
		if r.err != nil || r.stats != want {
			t.Errorf("%+v: %+v, %v", c, r.stats, r.err)
		}
		if !bytes.Equal(stream.Bytes(), sampleStream()) {
			t.Errorf("%+v: the stream is not what was said", c)
		}
	}
}

func TestServePagesFails(t *testing.T) {
	reason := errors.New("no")
	for name, c := range map[string]struct {
		say  []byte
		w    io.Writer
		want error
	}{
		"cut":               {frame{op: opAdd, flags: pagePresent, pages: 1}.append(nil), io.Discard, io.ErrUnexpectedEOF},
		"cut header":        {make([]byte, headerSize-1), io.Discard, io.ErrUnexpectedEOF},
		"ended without end": {nil, io.Discard, io.ErrUnexpectedEOF},
		"target gone":       {frame{op: opEndForce}.append(nil), failingWriter{reason}, reason},
		"unknown operation": {frame{op: 77}.append(nil), io.Discard, nil},
	} {
		_, err := (&pageServer{criu: &readOnly{bytes.NewReader(c.say)}, out: newFrameWriter(c.w), header: headerSize}).run(t.Context())
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// readOnly is a connection whose other end does not wait for answers.
type readOnly struct{ io.Reader }

func (*readOnly) Write(b []byte) (int, error) { return len(b), nil }

// receivePages gives back at once what ReceivePages has left.
func receivePages(ctx context.Context, t *testing.T, r io.Reader, imagesDir string, limits PageLimits) (PageStats, error) {
	t.Helper()
	stats, free, err := ReceivePages(ctx, r, imagesDir, limits, nil, nil)
	if err := free(); err != nil {
		t.Error(err)
	}
	return stats, err
}

func TestReceivePages(t *testing.T) {
	dir := t.TempDir()
	r := bytes.NewReader(append(sampleStream(), "next"...))
	stats, err := receivePages(t.Context(), t, r, dir, PageLimits{Bytes: 4 * pageSize, Images: 2})
	if err != nil || stats != (PageStats{Images: 2, Pages: 4, Bytes: 4 * pageSize}) {
		t.Fatalf("%+v, %v", stats, err)
	}
	if rest, _ := io.ReadAll(r); string(rest) != "next" {
		t.Errorf("%d bytes are left of what follows the stream", len(rest))
	}
	checkFile(t, filepath.Join(dir, "pages-65537.img"), append(pagesOf(2, 'a'), pagesOf(1, 'b')...))
	checkFile(t, filepath.Join(dir, "pages-65538.img"), pagesOf(1, 'c'))
	checkPagemap(t, filepath.Join(dir, "pagemap-7.img"), []map[protowire.Number]uint64{
		{1: 65537},
		{1: 0x10000, 2: 2, 4: pagePresent, 5: 2},
		{1: 0x20000, 2: 1, 4: pagePresent, 5: 1},
	})
	checkPagemap(t, filepath.Join(dir, "pagemap-shmem-9.img"), []map[protowire.Number]uint64{
		{1: 65538},
		{1: 0, 2: 1, 4: pagePresent, 5: 1},
	})
}

func checkFile(t *testing.T, name string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: %d bytes, %v; want %d bytes", name, len(got), err, len(want))
	}
}

// checkPagemap decodes a pagemap image independently of the code that writes it.
func checkPagemap(t *testing.T, name string, want []map[protowire.Number]uint64) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if magic := binary.LittleEndian.Uint32(b); magic != 0x54564319 {
		t.Errorf("%s: magic %#x", name, magic)
	}
	if magic := binary.LittleEndian.Uint32(b[4:]); magic != 0x56084025 {
		t.Errorf("%s: magic %#x", name, magic)
	}
	b = b[8:]
	for i, fields := range want {
		if len(b) < 4 {
			t.Fatalf("%s: ends before entry %d", name, i)
		}
		n := binary.LittleEndian.Uint32(b)
		entry := b[4 : 4+n]
		b = b[4+n:]
		for len(entry) > 0 {
			field, kind, n := protowire.ConsumeTag(entry)
			if n < 0 || kind != protowire.VarintType {
				t.Fatalf("%s: entry %d is malformed", name, i)
			}
			v, m := protowire.ConsumeVarint(entry[n:])
			if w, ok := fields[field]; !ok || w != v {
				t.Errorf("%s: entry %d has field %d = %d, want %d", name, i, field, v, w)
			}
			entry = entry[n+m:]
		}
	}
	if len(b) > 0 {
		t.Errorf("%s: %d bytes too many", name, len(b))
	}
}

func TestReceivePagesRefuses(t *testing.T) {
	open := frame{op: opOpen, image: task7}.append(nil)
	page := pagesOf(1, 0)
	add := func(f frame) []byte {
		f.op = opAdd
		if f.image == 0 {
			f.image = task7
		}
		return append(f.append(bytes.Clone(open)), page...)
	}
	for name, c := range map[string]struct {
		stream []byte
		want   error
	}{
		"nothing":            {nil, io.ErrUnexpectedEOF},
		"no end":             {open, io.ErrUnexpectedEOF},
		"cut page":           {add(frame{flags: pagePresent, pages: 1})[:headerSize*2+10], io.ErrUnexpectedEOF},
		"too much memory":    {add(frame{flags: pagePresent, pages: 17}), ErrLimit},
		"much too much":      {add(frame{flags: pagePresent, pages: 1 << 51}), ErrLimit},
		"too many images":    {bytes.Join([][]byte{open, frame{op: opOpen, image: 8<<8 | 1}.append(nil), frame{op: opOpen, image: 9<<8 | 1}.append(nil)}, nil), ErrLimit},
		"overflow":           {add(frame{flags: pagePresent, pages: 1<<52 + 1}), nil},
		"no pages":           {add(frame{flags: pagePresent}), nil},
		"end of memory":      {add(frame{flags: pagePresent, pages: 2, addr: ^uint64(0) - pageSize + 1}), nil},
		"unaligned":          {add(frame{flags: pagePresent, pages: 1, addr: 1}), nil},
		"parent flag":        {add(frame{flags: 1, pages: 1}), nil},
		"other image":        {add(frame{flags: pagePresent, pages: 1, image: shmem9}), nil},
		"before open":        {frame{op: opAdd, flags: pagePresent, pages: 1, image: task7}.append(nil), nil},
		"twice":              {append(bytes.Clone(open), open...), nil},
		"unknown kind":       {frame{op: opOpen, image: 7<<8 | 3}.append(nil), nil},
		"process 0":          {frame{op: opOpen, image: imageTask}.append(nil), nil},
		"impossible process": {frame{op: opOpen, image: (maxTaskNumber+1)<<8 | imageTask}.append(nil), nil},
		"unknown operation":  {frame{op: 9}.append(nil), nil},
		"backwards": {append(add(frame{flags: pagePresent, pages: 1, addr: 0x10000}),
			frame{op: opAdd, flags: pagePresent, pages: 1, addr: 0x10000, image: task7}.append(nil)...), nil},
	} {
		_, err := receivePages(t.Context(), t, bytes.NewReader(c.stream), t.TempDir(), PageLimits{Bytes: 16 * pageSize, Images: 2})
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReceivePagesCancelled(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("stop")
	done := make(chan error)
	go func() {
		_, err := receivePages(ctx, t, ours, t.TempDir(), PageLimits{Bytes: 1 << 20, Images: 2})
		done <- err
	}()
	if _, err := theirs.Write(frame{op: opOpen, image: task7}.append(nil)); err != nil {
		t.Fatal(err)
	}
	cancel(reason)
	if err := <-done; !errors.Is(err, reason) {
		t.Errorf("error is %v", err)
	}
}

// FuzzReceivePages feeds anything and checks that no more is written than
// allowed, and nothing outside of the directory.
func FuzzReceivePages(f *testing.F) {
	f.Add(sampleStream())
	f.Add(sampleStream()[:100])
	ahead := append(frame{op: opAhead, flags: pagePresent, pages: 2, addr: 0x10000, image: task7}.append(nil), pagesOf(2, 'a')...)
	f.Add(frame{op: opSame, flags: pagePresent, pages: 1, addr: 0x11000, image: task7}.append(frame{op: opOpen, image: task7}.append(ahead)))
	f.Add(frame{op: opAdd, flags: pagePresent, pages: 1 << 52, addr: 0, image: task7}.append(frame{op: opOpen, image: task7}.append(nil)))
	f.Add(frame{op: opOpen, image: (1<<56-1)<<8 | imageShmem}.append(nil))
	f.Fuzz(func(t *testing.T, stream []byte) {
		limits := PageLimits{Bytes: 8 * pageSize, Images: 3}
		dir := t.TempDir()
		stats, err := receivePages(t.Context(), t, bufio.NewReader(bytes.NewReader(stream)), dir, limits)
		if stats.Bytes > limits.Bytes || stats.Images > limits.Images || stats.Bytes != stats.Pages*pageSize {
			t.Errorf("%+v", stats)
		}
		entries, readErr := os.ReadDir(dir)
		if readErr != nil {
			t.Fatal(readErr)
		}
		if len(entries) > 2*limits.Images {
			t.Errorf("%d files", len(entries))
		}
		var size int64
		for _, e := range entries {
			if !imageName.MatchString(e.Name()) {
				t.Errorf("file %q", e.Name())
			}
			info, err := e.Info()
			if err != nil {
				t.Fatal(err)
			}
			size += info.Size()
		}
		// Pages, and for each run of at least one a small entry.
		if size > limits.Bytes+8*64+int64(limits.Images)*64 {
			t.Errorf("%d bytes written, error %v", size, err)
		}
	})
}

// Shared memory is refused by who has no place for it.
func TestReceivePagesSharedRefused(t *testing.T) {
	for _, f := range []frame{
		{op: opSegment, addr: 5, image: shmem9}, {op: opSegment, addr: 5, image: task7}, {op: opSharedPages, flags: pagePresent, pages: 1, image: shmem9},
		{op: opSharedHole, pages: pageSize, image: shmem9}, {op: opSharedDrop, image: shmem9}, {op: opSharedWhole, image: shmem9},
	} {
		stream := append(f.append(nil), pagesOf(1, 'a')...)
		if _, err := receivePages(t.Context(), t, bytes.NewReader(stream), t.TempDir(), PageLimits{Bytes: 16 * pageSize, Images: 2}); err == nil {
			t.Errorf("%+v: accepted", f)
		}
	}
}

// What came ahead and is in no image leaves nothing.
func TestReceivePagesAhead(t *testing.T) {
	var stream []byte
	for number, letter := range []byte("xyz") {
		ahead := frame{op: opAhead, flags: pagePresent, pages: 3, addr: 0x10000, image: uint64(7+number)<<8 | imageTask}
		stream = append(ahead.append(stream), pagesOf(3, letter)...)
	}
	for _, f := range []frame{
		{op: opOpen, image: 8<<8 | imageTask}, {op: opSame, flags: pagePresent, pages: 1, addr: 0x11000, image: 8<<8 | imageTask},
		{op: opOpen, image: task7}, {op: opSame, flags: pagePresent, pages: 3, addr: 0x10000, image: task7}, {op: opAdd, flags: pagePresent, pages: 1, addr: 0x13000, image: task7},
	} {
		stream = f.append(stream)
	}
	stream = frame{op: opClose}.append(append(stream, pagesOf(1, 'a')...))
	dir := t.TempDir()
	if _, err := receivePages(t.Context(), t, bytes.NewReader(stream), dir, PageLimits{Bytes: 16 * pageSize, Images: 3}); err != nil {
		t.Fatal(err)
	}
	want := map[string][]byte{
		fmt.Sprintf("pages-%d.img", firstPages):   pagesOf(3, 'y')[pageSize : 2*pageSize],
		fmt.Sprintf("pages-%d.img", firstPages+1): append(pagesOf(3, 'x'), pagesOf(1, 'a')...),
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "pagemap-") {
			continue
		}
		got, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if pages, ok := want[e.Name()]; !ok || err != nil || !bytes.Equal(got, pages) {
			t.Errorf("%s: %d bytes, want %d (%v)", e.Name(), len(got), len(pages), err)
		}
		delete(want, e.Name())
	}
	if len(want) > 0 {
		t.Errorf("missing: %d", len(want))
	}
}

func TestReceivePagesAheadRefused(t *testing.T) {
	ahead := frame{op: opAhead, flags: pagePresent, pages: 2, addr: 0x10000, image: task7}
	open := frame{op: opOpen, image: task7}
	for name, frames := range map[string][]frame{
		"unknown page":      {ahead, open, {op: opSame, flags: pagePresent, pages: 1, addr: 0x20000, image: task7}},
		"partly unknown":    {ahead, open, {op: opSame, flags: pagePresent, pages: 2, addr: 0x11000, image: task7}},
		"other image":       {ahead, {op: opOpen, image: shmem9}, {op: opSame, flags: pagePresent, pages: 1, addr: 0x10000, image: shmem9}},
		"out of order":      {ahead, ahead},
		"too late":          {open, ahead},
		"shared":            {{op: opAhead, flags: pagePresent, pages: 1, image: shmem9}},
		"too much":          {{op: opAhead, flags: pagePresent, pages: 17, addr: 0x10000, image: task7}},
		"too much together": {{op: opAhead, flags: pagePresent, pages: 15, image: task7}, ahead},
	} {
		var stream bytes.Buffer
		for _, f := range frames {
			stream.Write(f.append(nil))
			if f.op == opAhead {
				stream.Write(pagesOf(int(f.pages), 'a'))
			}
		}
		stream.Write(frame{op: opClose}.append(nil))
		if _, err := receivePages(t.Context(), t, &stream, t.TempDir(), PageLimits{Bytes: 16 * pageSize, Images: 2}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
