package filesync

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// makeTree makes 5,000 files of 1 to 8 KiB in 100 directories.
func makeTree(t testing.TB, root string) {
	t.Helper()
	for i := range 100 {
		dir := filepath.Join(root, fmt.Sprintf("some/directory-%02d", i%10), fmt.Sprintf("below-%03d", i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for j := range 50 {
			data := bytes.Repeat([]byte{byte(i), byte(j)}, 512*(1+j%8))
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("file-%03d.dat", j)), data, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// benchmarkUnchanged measures what the freeze waits for when nothing changed.
func benchmarkUnchanged(b *testing.B, base string) {
	src, dst := dirs(b, base)
	makeTree(b, src)
	p := newPair(b, src, dst, Options{})
	p.settle()
	for b.Loop() {
		if _, err := p.source.Sync(context.Background(), io.Discard, true); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnchangedDisk(b *testing.B)   { benchmarkUnchanged(b, diskDir(b)) }
func BenchmarkUnchangedMemory(b *testing.B) { benchmarkUnchanged(b, memoryDir(b)) }

// benchmarkFirst measures a first pass with both ends.
func benchmarkFirst(b *testing.B, base string) {
	src, dst := dirs(b, base)
	makeTree(b, src)
	for i := 0; b.Loop(); i++ {
		d := filepath.Join(dst, fmt.Sprint(i))
		if err := os.Mkdir(d, 0o755); err != nil {
			b.Fatal(err)
		}
		newPair(b, src, d, Options{}).pass(false)
	}
}

func BenchmarkFirstDisk(b *testing.B)   { benchmarkFirst(b, diskDir(b)) }
func BenchmarkFirstMemory(b *testing.B) { benchmarkFirst(b, memoryDir(b)) }

// BenchmarkBigMemory measures comparing 256 MiB on a tmpfs.
func BenchmarkBigMemory(b *testing.B) {
	src, dst := dirs(b, memoryDir(b))
	if err := os.WriteFile(filepath.Join(src, "big"), bytes.Repeat([]byte("0123456789abcdef"), 16<<20), 0o644); err != nil {
		b.Fatal(err)
	}
	p := newPair(b, src, dst, Options{})
	p.pass(false)
	b.SetBytes(256 << 20)
	for b.Loop() {
		if _, err := p.source.Sync(context.Background(), io.Discard, true); err != nil {
			b.Fatal(err)
		}
	}
}
