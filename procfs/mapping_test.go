package procfs

import (
	"bytes"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseMapping(t *testing.T) {
	for line, want := range map[string]Mapping{
		"7f0e4c000000-7f0e4c021000 rw-p 00000000 00:00 0 ":                                {Start: 0x7f0e4c000000, End: 0x7f0e4c021000, Readable: true, Writable: true},
		"7f0e4c000000-7f0e4c021000 r-xs 00002000 fe:0a 81   /usr/lib/a file":              {Start: 0x7f0e4c000000, End: 0x7f0e4c021000, Readable: true, Executable: true, Shared: true, Offset: 0x2000, Major: 0xfe, Minor: 10, Inode: 81, Name: "/usr/lib/a file"},
		"ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vdso]": {Start: 0xffffffffff600000, End: 0xffffffffff601000, Executable: true, Name: "[vdso]"},
	} {
		if m, ok := ParseMapping([]byte(line)); !ok || m != want {
			t.Errorf("%q: %+v, %v; want %+v", line, m, ok, want)
		}
	}
	for _, line := range []string{
		"", "Rss:      100 kB", "VmFlags: rd wr mr", "7f00-7f10 rw-p 00000000 00:00", "7f00-7f10 rw- 00000000 00:00 0", "7f00 rw-p 00000000 00:00 0",
		"7g00-7f10 rw-p 00000000 00:00 0", "7f00-7f10 rw-p 00000000 0000 0",
	} {
		if m, ok := ParseMapping([]byte(line)); ok {
			t.Errorf("%q was parsed: %+v", line, m)
		}
	}
}

// TestMaps asks for every mapping of this process, by the ioctl where there is one and by text.
func TestMaps(t *testing.T) {
	b, err := unix.Mmap(-1, 0, 3*os.Getpagesize(), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for _, byText := range []bool{false, true} {
		m, err := OpenMaps(os.Getpid())
		if err != nil {
			t.Fatal(err)
		}
		if byText {
			if err := m.readText(); err != nil {
				t.Fatal(err)
			}
		}
		files := 0
		for line := range bytes.Lines(text) {
			want, ok := ParseMapping(bytes.TrimSpace(line))
			if !ok {
				t.Fatalf("%q was not parsed", line)
			}
			// Only what stays while Go's runtime goes on.
			if want.Inode == 0 {
				continue
			}
			files++
			want.Name = ""
			for _, address := range []uint64{want.Start, want.End - 1} {
				got, ok, err := m.Next(address)
				got.PageSize = 0
				if err != nil || !ok || got != want {
					t.Errorf("by text %v: at %#x is %+v, %v, %v; want %+v", byText, address, got, ok, err, want)
				}
			}
		}
		if files == 0 {
			t.Error("no mapping of a file was seen")
		}
		if got, ok, err := m.Next(^uint64(0)); ok || err != nil {
			t.Errorf("by text %v: above everything is %+v, %v", byText, got, err)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
}
