package checkpoint

import (
	"bytes"
	"encoding/binary"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// sharedBuffer is the way to a target.
type sharedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *sharedBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *sharedBuffer) bytes() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.b.Bytes())
}

// await waits until something was sent.
func (s *sharedBuffer) await(t *testing.T, content string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !bytes.Contains(s.bytes(), []byte(content)); {
		if time.Now().After(deadline) {
			t.Fatalf("%q was not sent", content)
		}
		<-time.After(time.Millisecond)
	}
}

// Images are sent when they are closed, what changed after that is sent again, and the
// target has what is in the directory at the end.
func TestEarlyImages(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(from, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var way sharedBuffer
	out := newFrameWriter(&way)
	e, err := sendEarly(from, out)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.close(); err != nil {
			t.Error(err)
		}
	})
	open, err := os.Create(filepath.Join(from, "open.img"))
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if _, err := open.WriteString("begun, "); err != nil {
		t.Fatal(err)
	}
	write("notes.txt", "none of ours")
	write("core-1.img", "one")
	write("core-2.img", "two")
	write("core-3.img", "three")
	way.await(t, "three")
	write("core-1.img", "one, changed before the end")
	write("core-4.img", "four")
	way.await(t, "four")
	if err := e.end(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(out.write(frame{op: opClose}, nil), out.flush()); err != nil {
		t.Fatal(err)
	}
	write("core-2.img", "two, changed after the end")
	write("core-5.img", "five")
	if _, err := open.WriteString("ended"); err != nil {
		t.Fatal(err)
	}
	open.Close()
	sent, err := e.current()
	if err != nil {
		t.Fatal(err)
	}
	if names := slices.Sorted(maps.Keys(sent)); !slices.Equal(names, []string{"core-3.img", "core-4.img"}) {
		t.Errorf("as they were sent are %q", names)
	}
	stats, err := sendImageFrames(&way, openDir(t, from), sent)
	if err != nil || stats.Files != 6 {
		t.Fatalf("%+v, %v", stats, err)
	}
	s := NewImageStore(to, sampleLimits)
	stream := bytes.NewReader(way.bytes())
	if _, free, err := ReceivePages(t.Context(), stream, to, PageLimits{Bytes: 1, Images: 1}, nil, s); err != nil || free() != nil {
		t.Fatal(err)
	}
	if got, err := s.Receive(t.Context(), stream); err != nil || got != stats {
		t.Fatalf("%+v, %v, want %+v", got, err, stats)
	}
	for name, content := range map[string]string{
		"core-1.img": "one, changed before the end", "core-2.img": "two, changed after the end", "core-3.img": "three",
		"core-4.img": "four", "core-5.img": "five", "open.img": "begun, ended",
	} {
		checkFile(t, filepath.Join(to, name), []byte(content))
	}
}

func TestEarlyImagesFail(t *testing.T) {
	dir, reason := t.TempDir(), errors.New("the target is gone")
	e, err := sendEarly(dir, newFrameWriter(failingWriter{reason}))
	if err != nil {
		t.Fatal(err)
	}
	defer e.close()
	if err := os.WriteFile(filepath.Join(dir, "core-1.img"), make([]byte, 2*pageBuffer), 0o600); err != nil {
		t.Fatal(err)
	}
	<-e.done
	if err := e.end(); !errors.Is(err, reason) || !errors.Is(err, errSendPages) {
		t.Errorf("error is %v", err)
	}
	if _, err := sendEarly(filepath.Join(dir, "missing"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a directory: %v", err)
	}
}

func TestClosedImages(t *testing.T) {
	event := func(mask uint32, name string) []byte {
		b := binary.NativeEndian.AppendUint32(nil, 1)
		b = binary.NativeEndian.AppendUint32(b, mask)
		b = binary.NativeEndian.AppendUint32(b, 0)
		padded := make([]byte, (len(name)+16)&^15)
		copy(padded, name)
		return append(binary.NativeEndian.AppendUint32(b, uint32(len(padded))), padded...)
	}
	names, overflow := closedImages(bytes.Join([][]byte{
		event(unix.IN_CLOSE_WRITE, "a.img"), event(unix.IN_CLOSE_WRITE, "dump.log"), event(unix.IN_IGNORED, "b.img"), event(unix.IN_CLOSE_WRITE, "c-0123456789.img"),
	}, nil))
	if overflow || !slices.Equal(names, []string{"a.img", "c-0123456789.img"}) {
		t.Errorf("%q, %v", names, overflow)
	}
	if _, overflow := closedImages(append(event(unix.IN_CLOSE_WRITE, "a.img"), event(unix.IN_Q_OVERFLOW, "")...)); !overflow {
		t.Error("an overflow is not seen")
	}
}
