package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// imageFrame is an image in a frame.
func imageFrame(flags uint32, name, content string) []byte {
	var b bytes.Buffer
	if err := writeImageFrame(&b, flags, name, []byte(content)); err != nil {
		panic(err)
	}
	return b.Bytes()
}

// endOfImages ends a section of so many images.
func endOfImages(n uint64) []byte { return frame{op: opClose, pages: n}.append(nil) }

// openDir opens a directory of images.
func openDir(t testing.TB, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func TestImageFrames(t *testing.T) {
	from := sampleImages(t)
	large := bytes.Repeat([]byte("0123456789"), smallImage/4)
	if err := os.WriteFile(filepath.Join(from, "large-1.img"), large, 0o600); err != nil {
		t.Fatal(err)
	}
	even := large[:2*smallImage]
	if err := os.WriteFile(filepath.Join(from, "even-1.img"), even, 0o600); err != nil {
		t.Fatal(err)
	}
	var stream bytes.Buffer
	sent, err := sendImageFrames(&stream, openDir(t, from), nil)
	if err != nil || sent.Files != 5 {
		t.Fatalf("sent %+v, %v", sent, err)
	}
	stream.WriteString("next")
	to := t.TempDir()
	s := NewImageStore(to, ImageLimits{Bytes: 8 << 20, Files: 5})
	if got, err := s.Receive(t.Context(), &stream); err != nil || got != sent {
		t.Fatalf("received %+v, %v", got, err)
	}
	if stream.String() != "next" {
		t.Errorf("%d bytes are left of what follows", stream.Len())
	}
	checkFile(t, filepath.Join(to, "core-1.img"), []byte("core"))
	checkFile(t, filepath.Join(to, "inventory.img"), nil)
	checkFile(t, filepath.Join(to, "large-1.img"), large)
	checkFile(t, filepath.Join(to, "even-1.img"), even)
}

// Images come early, change, come again, and the rest comes in the section.
func TestImageStoreEarly(t *testing.T) {
	dir := t.TempDir()
	s := NewImageStore(dir, ImageLimits{Bytes: 100, Files: 3})
	stream := bytes.Join([][]byte{
		imageFrame(0, "core-1.img", "first"), imageFrame(0, "core-2.img", "two"), imageFrame(0, "core-1.img", "second"),
		frame{op: opClose}.append(nil),
	}, nil)
	if _, free, err := ReceivePages(t.Context(), bytes.NewReader(stream), dir, PageLimits{Bytes: 1, Images: 1}, nil, s); err != nil || free() != nil {
		t.Fatal(err)
	}
	rest := bytes.Join([][]byte{imageFrame(0, "core-2.img", "changed"), imageFrame(0, "files.img", ""), endOfImages(3)}, nil)
	got, err := s.Receive(t.Context(), bytes.NewReader(rest))
	if want := (ImageStats{Files: 3, Bytes: 13}); err != nil || got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	checkFile(t, filepath.Join(dir, "core-1.img"), []byte("second"))
	checkFile(t, filepath.Join(dir, "core-2.img"), []byte("changed"))
	checkFile(t, filepath.Join(dir, "files.img"), nil)
}

func TestImageStoreRefuses(t *testing.T) {
	cut := imageFrame(0, "a.img", "content")
	for name, c := range map[string]struct {
		stream []byte
		want   error
	}{
		"nothing":        {nil, io.ErrUnexpectedEOF},
		"cut":            {cut[:len(cut)-1], io.ErrUnexpectedEOF},
		"no end":         {cut, io.ErrUnexpectedEOF},
		"too few":        {append(bytes.Clone(cut), endOfImages(2)...), ErrCorrupt},
		"too many":       {endOfImages(1<<64 - 1), ErrCorrupt},
		"other":          {frame{op: opOpen, image: task7}.append(nil), nil},
		"too big":        {imageFrame(0, "a.img", strings.Repeat("x", 21)), ErrLimit},
		"too many bytes": {append(imageFrame(0, "a.img", strings.Repeat("x", 12)), imageFrame(imageMore, "a.img", strings.Repeat("x", 9))...), ErrLimit},
		"too many files": {bytes.Join([][]byte{imageFrame(0, "a.img", ""), imageFrame(0, "b.img", ""), imageFrame(0, "c.img", "")}, nil), ErrLimit},
		"huge":           {frame{op: opImage, pages: 1 << 63, addr: 5}.append(nil), ErrLimit},
		"huge name":      {frame{op: opImage, pages: 1, addr: 1 << 63}.append(nil), ErrLimit},
		"no beginning":   {imageFrame(imageMore, "a.img", "x"), ErrCorrupt},
		"parent":         {imageFrame(0, "../a.img", ""), ErrCorrupt},
		"absolute":       {imageFrame(0, "/a.img", ""), ErrCorrupt},
		"hidden":         {imageFrame(0, ".a.img", ""), ErrCorrupt},
		"zero byte":      {imageFrame(0, "a\x00.img", ""), ErrCorrupt},
		"no image":       {imageFrame(0, "criu.conf", ""), ErrCorrupt},
		"no name":        {imageFrame(0, "", "x"), ErrCorrupt},
		"not its own":    {imageFrame(0, "pages-1.img", "x"), fs.ErrExist},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "pages-1.img"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		s := NewImageStore(dir, ImageLimits{Bytes: 20, Files: 2})
		if _, err := s.Receive(t.Context(), bytes.NewReader(c.stream)); err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := receivePages(t.Context(), t, bytes.NewReader(cut), t.TempDir(), PageLimits{Bytes: 1, Images: 1}); err == nil {
		t.Error("an image was taken by who has no place for it")
	}
}

func TestImageStoreCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := NewImageStore(t.TempDir(), sampleLimits).Receive(ctx, bytes.NewReader(endOfImages(0))); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

// storeImages has a store receive all images of a directory.
func storeImages(t testing.TB, from string) (dir string, s *ImageStore) {
	t.Helper()
	var stream bytes.Buffer
	if _, err := sendImageFrames(&stream, openDir(t, from), nil); err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	s = NewImageStore(dir, ImageLimits{Bytes: 1 << 30, Files: 1000})
	if _, err := s.Receive(t.Context(), &stream); err != nil {
		t.Fatal(err)
	}
	return dir, s
}

// What was decoded as it came is verified as what is read, and not read again.
func TestVerifyDecoded(t *testing.T) {
	for _, name := range []string{"pod", "desktop"} {
		dir, s := storeImages(t, copyImages(t, name))
		decoded := s.images()
		for name := range decoded {
			if err := os.WriteFile(filepath.Join(dir, name), []byte("no image"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := testPolicy(t).verify(dir, decoded); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := testPolicy(t).Verify(dir); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: what is in the files does not count: %v", name, err)
		}
	}
}

// An image that comes again is verified as it came last, whatever was decoded before.
func TestVerifyReplaced(t *testing.T) {
	from := copyImages(t, "pod")
	dir, s := storeImages(t, from)
	good, err := os.ReadFile(filepath.Join(from, "mm-1.img"))
	if err != nil {
		t.Fatal(err)
	}
	n := uint64(s.stats.Files)
	for name, stream := range map[string][]byte{
		"replaced": imageFrame(0, "mm-1.img", "no image"), "longer": imageFrame(imageMore, "mm-1.img", "and more"),
	} {
		if _, err := s.Receive(t.Context(), bytes.NewReader(append(stream, endOfImages(n)...))); err != nil {
			t.Fatal(err)
		}
		if err := testPolicy(t).verify(dir, s.images()); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error is %v", name, err)
		}
		if _, err := s.Receive(t.Context(), bytes.NewReader(append(imageFrame(0, "mm-1.img", string(good)), endOfImages(n)...))); err != nil {
			t.Fatal(err)
		}
		if err := testPolicy(t).verify(dir, s.images()); err != nil {
			t.Errorf("good again: %v", err)
		}
	}
}

// What is too much to be kept is read when it is verified.
func TestImageStoreDecodesSome(t *testing.T) {
	s := NewImageStore(t.TempDir(), sampleLimits)
	image := strings.Repeat("x", smallImage)
	for range 2 * maxDecoded / smallImage {
		s.decode("core-1.img", []byte(image))
	}
	for s.decode("core-2.img", nil); len(s.images()) > 0; {
		t.Fatal("something was decoded")
	}
	dir, s := storeImages(t, copyImages(t, "pod"))
	s.decoded = map[string]decodedImage{"core-1.img": s.images()["core-1.img"]}
	if err := testPolicy(t).verify(dir, s.images()); err != nil {
		t.Error(err)
	}
}

// FuzzImageStore feeds anything, early and late, and checks that no more is written than
// allowed, and nothing but images.
func FuzzImageStore(f *testing.F) {
	f.Add(imageFrame(0, "core-1.img", "x"), append(imageFrame(0, "core-1.img", "y"), endOfImages(1)...))
	f.Add(imageFrame(0, "mm-1.img", "x"), append(imageFrame(imageMore, "mm-1.img", "y"), endOfImages(1)...))
	f.Fuzz(func(t *testing.T, early, late []byte) {
		dir, limits := t.TempDir(), ImageLimits{Bytes: 100, Files: 3}
		s := NewImageStore(dir, limits)
		_, free, err := ReceivePages(t.Context(), bytes.NewReader(early), dir, PageLimits{Images: 1}, nil, s)
		if err == nil {
			_, err = s.Receive(t.Context(), bytes.NewReader(late))
		}
		if err := free(); err != nil {
			t.Error(err)
		}
		s.images()
		entries, readErr := os.ReadDir(dir)
		if readErr != nil {
			t.Fatal(readErr)
		}
		var size int64
		for _, e := range entries {
			if info, err := e.Info(); err != nil || !imageName.MatchString(e.Name()) {
				t.Errorf("file %q, %v", e.Name(), err)
			} else {
				size += info.Size()
			}
		}
		// A page image may be there, without pages, and its list.
		if len(entries) > limits.Files+2 || size > limits.Bytes+64 {
			t.Errorf("%d files of %d bytes, error %v", len(entries), size, err)
		}
	})
}
