package pagesync

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

func smaps(line, flags string) string {
	return line + "\nSize:                132 kB\nRss:                 100 kB\nPss:                  40 kB\nAnonHugePages:         0 kB\nVmFlags: " + flags + "\n"
}

func TestCarriedMappings(t *testing.T) {
	const usual = "rd wr mr mw me ac sd"
	for _, c := range []struct {
		name, line, flags string
		carried           bool
	}{
		{"anonymous", "7f0e4c000000-7f0e4c100000 rw-p 00000000 00:00 0 ", usual, true},
		{"heap", "7f0e4c000000-7f0e4c100000 rw-p 00000000 00:00 0                          [heap]", usual, true},
		{"named", "7f0e4c000000-7f0e4c100000 rw-p 00000000 00:00 0   [anon:glibc: malloc arena]", usual, true},
		{"reserved", "7f0e4c000000-7f0e4c100000 rw-p 00000000 00:00 0", usual + " nr", true},
		{"advised", "7f0e4c000000-7f0e4c100000 rw-p 00000000 00:00 0", "rd wr mr mw me dd dc ac sr hg mg", true},
		{"small", "7f0e4c000000-7f0e4c00f000 rw-p 00000000 00:00 0", usual, false},
		{"huge", "7f0000000000-7f1000001000 rw-p 00000000 00:00 0", usual, false},
		{"read only", "7f0e4c000000-7f0e4c100000 r--p 00000000 00:00 0", "rd mr mw me ac sd", false},
		{"not accessible", "7f0e4c000000-7f0e4c100000 ---p 00000000 00:00 0", "mr mw me sd", false},
		{"executable", "7f0e4c000000-7f0e4c100000 rwxp 00000000 00:00 0", usual + " ex", false},
		{"shared", "7f0e4c000000-7f0e4c100000 rw-s 00000000 00:01 1027  /dev/zero (deleted)", usual + " sh ms", false},
		{"file", "7f0e4c000000-7f0e4c100000 rw-p 00000000 fe:00 81  /usr/lib/libc.so.6", usual, false},
		{"file with a name like ours", "7f0e4c000000-7f0e4c100000 rw-p 00000000 fe:00 81  [heap]", usual, false},
		{"huge pages", "7f0e4c000000-7f0e4c200000 rw-p 00000000 00:0f 77  /anon_hugepage (deleted)", usual + " de ht", false},
		{"stack", "7ffe4c000000-7ffe4c100000 rw-p 00000000 00:00 0  [stack]", "rd wr mr mw me gd ac", false},
		{"growing", "7ffe4c000000-7ffe4c100000 rw-p 00000000 00:00 0", "rd wr mr mw me gd ac", false},
		{"locked", "7f0e4c000000-7f0e4c100000 rw-p 00000000 00:00 0", usual + " lo", false},
		{"wiped", "7f0e4c000000-7f0e4c100000 rw-p 00000000 00:00 0", usual + " wf", false},
		{"droppable", "7f0e4c000000-7f0e4c100000 rw-p 00000000 00:00 0", usual + " dp", false},
		{"device", "7f0e4c000000-7f0e4c100000 rw-p 00000000 00:00 0", usual + " io pf", false},
		{"userfaultfd", "7f0e4c000000-7f0e4c100000 rw-p 00000000 00:00 0", usual + " um", false},
		{"sealed", "7f0e4c000000-7f0e4c100000 rw-p 00000000 00:00 0", usual + " sl", false},
		{"vvar", "7f0e4c000000-7f0e4c100000 rw-p 00000000 00:00 0  [vvar]", usual, false},
		{"of the future", "7f0e4c000000-7f0e4c100000 rw-p 00000000 00:00 0", usual + " zz", false},
		{"without flags", "7f0e4c000000-7f0e4c100000 rw-p 00000000 00:00 0", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			other := smaps("7fff00000000-7fff00100000 rw-p 00000000 00:00 0 ", usual)
			spans, _, err := parseSmaps(strings.NewReader(smaps(c.line, c.flags) + other))
			if err != nil {
				t.Fatal(err)
			}
			want := []span{{0x7fff00000000, 0x7fff00100000}}
			if c.carried {
				want = slices.Insert(want, 0, span{0x7f0e4c000000, 0x7f0e4c100000})
			}
			if !slices.Equal(spans, want) {
				t.Errorf("got %x; want %x", spans, want)
			}
		})
	}
}

// TestTornSmaps: a mapping was changed while smaps was read.
func TestTornSmaps(t *testing.T) {
	const usual = "rd wr mr mw me ac sd"
	spans, shared, err := parseSmaps(strings.NewReader(
		smaps("7f2e28fd5000-7f2e290b6000 rw-p 00000000 00:00 0", usual) +
			smaps("7f2e29018000-7f2e290c0000 rw-p 00000000 00:00 0", usual) +
			smaps("7f2e29018000-7f2e29060000 rw-p 00000000 00:00 0", usual)))
	want := []span{{0x7f2e28fd5000, 0x7f2e290b6000}, {0x7f2e290b6000, 0x7f2e290c0000}}
	if err != nil || !slices.Equal(spans, want) {
		t.Errorf("%x, %v; want %x", spans, err, want)
	}
	if shared != 2*60<<10 {
		t.Errorf("%d bytes are shared", shared)
	}
}

func TestMalformedSmaps(t *testing.T) {
	for _, s := range []string{"nonsense\n", "7f0e4c000000 rw-p 0 00:00 0\n", "7f0e4c000000-7f0e4c100000 rw 0 00:00 0\n", strings.Repeat("x", 1<<17)} {
		if spans, _, err := parseSmaps(strings.NewReader(s)); err == nil {
			t.Errorf("%.40q: %v", s, spans)
		}
	}
}

// TestStillCarried compares what the kernel tells by ioctl and by text, of this
// program.
func TestStillCarried(t *testing.T) {
	b, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	known, _, err := carriedMappings(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	// Go's runtime may change some meanwhile; those that hold b stay as they are.
	start, err := addressOf(b)
	if err != nil {
		t.Fatal(err)
	}
	holds := func(spans []span) bool {
		return slices.ContainsFunc(spans, func(s span) bool { return s.start <= start && start+1<<20 <= s.end })
	}
	if !holds(known) {
		t.Fatalf("%x does not hold %x", known, start)
	}
	known = slices.DeleteFunc(known, func(s span) bool { return !holds([]span{s}) })
	// What is known is only a part, and the mapping has grown since.
	known[0] = span{start + 8<<12, start + 9<<12}
	now, err := stillCarried(os.Getpid(), known)
	if err != nil || !holds(now) {
		t.Errorf("%x, %v", now, err)
	}
	if err := unix.Mprotect(b, unix.PROT_READ); err != nil {
		t.Fatal(err)
	}
	if now, err = stillCarried(os.Getpid(), known); err != nil || len(now) != 0 {
		t.Errorf("read only memory: %x, %v", now, err)
	}
}

func TestPodProcesses(t *testing.T) {
	// This program is in the pid namespace of whichever init.
	found, err := podProcesses(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range found {
		if id.pid != os.Getpid() {
			continue
		}
		p, err := openProcess(id)
		if err != nil {
			t.Fatal(err)
		}
		defer p.close()
		if err := p.alive(); err != nil {
			t.Error(err)
		}
		id.start++ // somebody else had the pid
		if _, err := openProcess(id); !procfs.Gone(err) {
			t.Errorf("the pid was used again: %v", err)
		}
		return
	}
	t.Errorf("%v lacks %d", found, os.Getpid())
}

func TestCut(t *testing.T) {
	spans := []span{{0x1000, 0x2000}, {0x4000, 0x8000}}
	for _, c := range []struct {
		address uint64
		want    string
	}{
		{0x3000, "[{1000 2000} {4000 8000}]"},
		{0x1fff, "[{4000 8000}]"},
		{0x4abc, "[{1000 2000} {5000 8000}]"},
		{0x5abc, "[{1000 2000} {4000 5000} {6000 8000}]"},
		{0x7fff, "[{1000 2000} {4000 7000}]"},
		{0x8000, "[{1000 2000} {4000 8000}]"},
	} {
		if got := fmt.Sprintf("%x", cut(slices.Clone(spans), c.address)); got != c.want {
			t.Errorf("without %#x: %s; want %s", c.address, got, c.want)
		}
	}
}
