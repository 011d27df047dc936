package filesync

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// testMmap stores into a shared mapping whose page an earlier store has made
// writable, after the source has come to trust the file, and requires that the
// next pass carries it.
func testMmap(t *testing.T, base string) {
	src, dst := dirs(t, base)
	path := filepath.Join(src, "mapped")
	if err := os.WriteFile(path, bytes.Repeat([]byte("before "), 50_000), 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := unix.Mmap(int(f.Fd()), 0, 200_000, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(m)

	p := newPair(t, src, dst, Options{})
	for i := range 3 {
		final := i == 2
		copy(m[100_000:], "dirtied before the pass")
		m[199_999] = byte('0' + i)
		p.settle()
		requireEqual(t, src, dst)
		if stats := p.pass(false); !p.source.trees[0].byContent && stats.Examined != 0 {
			t.Fatalf("%d bytes were read of a file that is trusted", stats.Examined)
		}
		copy(m[100_000:], "stored after the pass  ")
		m[199_999] = byte('a' + i)
		stats := p.pass(final)
		requireEqual(t, src, dst)
		if stats.Content == 0 || stats.Content > 3*blockSize {
			t.Errorf("%d bytes of content were sent for two stores; want two blocks", stats.Content)
		}
	}
}

func TestMmapDisk(t *testing.T)   { testMmap(t, diskDir(t)) }
func TestMmapMemory(t *testing.T) { testMmap(t, memoryDir(t)) }
