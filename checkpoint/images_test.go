package checkpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var sampleLimits = ImageLimits{Bytes: 1 << 20, Files: 10}

// sampleImages makes a directory with images and things that are none.
func sampleImages(t testing.TB) string {
	dir := t.TempDir()
	for name, content := range map[string]string{
		"core-1.img": "core", "inventory.img": "", "tmpfs-dev-61.tar.gz.img": strings.Repeat("x", 100000),
		"dump.log": "not sent", ".hidden.img": "not sent", "criu.conf": "not sent",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("core-1.img", filepath.Join(dir, "link.img")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "dir.img"), 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestImagesRoundTrip(t *testing.T) {
	var stream bytes.Buffer
	sent, err := SendImages(&stream, sampleImages(t))
	if err != nil || sent != (ImageStats{Files: 3, Bytes: 100004}) {
		t.Fatalf("sent %+v, %v", sent, err)
	}
	stream.WriteString("next")
	dir := t.TempDir()
	got, err := ReceiveImages(t.Context(), &stream, dir, sampleLimits)
	if err != nil || got != sent {
		t.Fatalf("received %+v, %v", got, err)
	}
	if stream.String() != "next" {
		t.Errorf("%d bytes are left of what follows the stream", stream.Len())
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%v, %v", entries, err)
	}
	checkFile(t, filepath.Join(dir, "core-1.img"), []byte("core"))
	checkFile(t, filepath.Join(dir, "inventory.img"), nil)
	checkFile(t, filepath.Join(dir, "tmpfs-dev-61.tar.gz.img"), bytes.Repeat([]byte("x"), 100000))
}

// imageStream makes a stream with any manifest.
func imageStream(manifest, content string) []byte {
	b := []byte(imageStreamMagic)
	b = binary.BigEndian.AppendUint32(b, uint32(len(manifest)))
	return append(append(b, manifest...), content...)
}

const emptyDigest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestReceiveImagesRefuses(t *testing.T) {
	file := func(name string, size int) string {
		return fmt.Sprintf(`{"name":%q,"size":%d,"sha256":%q}`, name, size, emptyDigest)
	}
	list := func(files ...string) string { return `{"files":[` + strings.Join(files, ",") + `]}` }
	for name, c := range map[string]struct {
		stream []byte
		want   error
	}{
		"nothing":        {nil, io.ErrUnexpectedEOF},
		"not ours":       {[]byte("GIF89a, and so on"), ErrCorrupt},
		"cut manifest":   {imageStream(list(file("a.img", 0)), "")[:20], io.ErrUnexpectedEOF},
		"huge manifest":  {append([]byte(imageStreamMagic), 0xff, 0xff, 0xff, 0xff), ErrLimit},
		"no JSON":        {imageStream("hello", ""), ErrCorrupt},
		"cut file":       {imageStream(list(file("a.img", 5)), "1234"), io.ErrUnexpectedEOF},
		"wrong digest":   {imageStream(list(file("a.img", 5)), "12345"), ErrCorrupt},
		"too big":        {imageStream(list(file("a.img", 1<<19), file("b.img", 1<<19+1)), ""), ErrLimit},
		"overflow":       {imageStream(list(file("a.img", 1<<62), file("b.img", 1<<62), file("c.img", 1<<62)), ""), ErrLimit},
		"negative":       {imageStream(list(file("a.img", -1)), ""), ErrCorrupt},
		"too many files": {imageStream(list(strings.Split(strings.Repeat(file("a.img", 0)+" ", 11), " ")[:11]...), ""), ErrLimit},
		"twice":          {imageStream(list(file("a.img", 0), file("a.img", 0)), ""), os.ErrExist},
		"parent":         {imageStream(list(file("../a.img", 0)), ""), ErrCorrupt},
		"absolute":       {imageStream(list(file("/a.img", 0)), ""), ErrCorrupt},
		"hidden":         {imageStream(list(file(".a.img", 0)), ""), ErrCorrupt},
		"zero byte":      {imageStream(list(file("a\x00.img", 0)), ""), ErrCorrupt},
		"newline":        {imageStream(list(file("a.img\n", 0)), ""), ErrCorrupt},
		"no image":       {imageStream(list(file("criu.conf", 0)), ""), ErrCorrupt},
	} {
		dir := t.TempDir()
		if _, err := ReceiveImages(t.Context(), bytes.NewReader(c.stream), dir, sampleLimits); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReceiveImagesDoesNotFollowLinks(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside")
	dir := t.TempDir()
	if err := os.Symlink(outside, filepath.Join(dir, "a.img")); err != nil {
		t.Fatal(err)
	}
	stream := imageStream(`{"files":[{"name":"a.img","size":0,"sha256":"`+emptyDigest+`"}]}`, "")
	if _, err := ReceiveImages(t.Context(), bytes.NewReader(stream), dir, sampleLimits); err == nil {
		t.Error("no error")
	}
	if _, err := os.Lstat(outside); !os.IsNotExist(err) {
		t.Errorf("written through a link: %v", err)
	}
}

func TestReceiveImagesCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stream bytes.Buffer
	if _, err := SendImages(&stream, sampleImages(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := ReceiveImages(ctx, &stream, t.TempDir(), sampleLimits); !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

// FuzzReceiveImages feeds anything and checks that no more is written than
// allowed, and nothing outside of the directory.
func FuzzReceiveImages(f *testing.F) {
	var sample bytes.Buffer
	if _, err := SendImages(&sample, sampleImages(f)); err != nil {
		f.Fatal(err)
	}
	f.Add(sample.Bytes())
	f.Add(imageStream(`{"files":[{"name":"a.img","size":0,"sha256":"`+emptyDigest+`"}]}`, ""))
	f.Add(imageStream(`{"files":[{"name":"../../x.img","size":9223372036854775807,"sha256":""}]}`, "abc"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		limits := ImageLimits{Bytes: 1 << 10, Files: 4}
		parent := t.TempDir()
		dir := filepath.Join(parent, "images")
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		ReceiveImages(t.Context(), bytes.NewReader(stream), dir, limits)
		if outside, err := os.ReadDir(parent); err != nil || len(outside) != 1 {
			t.Errorf("written outside: %v, %v", outside, err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) > limits.Files {
			t.Errorf("%d files, %v", len(entries), err)
		}
		var size int64
		for _, e := range entries {
			info, err := e.Info()
			if err != nil || !info.Mode().IsRegular() {
				t.Errorf("%v, %v", e, err)
			}
			size += info.Size()
		}
		if size > limits.Bytes {
			t.Errorf("%d bytes", size)
		}
	})
}

func TestInventory(t *testing.T) {
	dir := t.TempDir()
	entry := append(binary.LittleEndian.AppendUint32(nil, 3), "abc"...)
	pstree := append(make([]byte, 8), bytes.Repeat(entry, 3)...)
	for name, content := range map[string][]byte{
		"pstree.img": pstree, "tcp-stream-1f.img": nil, "tcp-stream-20.img": nil, "core-1.img": nil,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	processes, connections, err := inventory(dir)
	if processes != 3 || connections != 2 || err != nil {
		t.Errorf("%d processes, %d connections, %v", processes, connections, err)
	}
	if _, err := countEntries(bytes.NewReader(pstree[:len(pstree)-1])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("error is %v", err)
	}
	if _, _, err := inventory(t.TempDir()); err == nil {
		t.Error("no error without an image")
	}
}
