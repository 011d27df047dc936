package pager

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"podd/pagesync"
)

const at = 0x7f00_3fff_0000 // 16 pages below the end of a window

func page(b byte) []byte { return bytes.Repeat([]byte{b}, pageSize) }

func frame(kind pagesync.Kind, address uint64, pages int, payload ...byte) pagesync.Frame {
	f := pagesync.Frame{Kind: kind, PID: 1, Address: address, Pages: pages}
	for _, b := range payload {
		f.Payload = append(f.Payload, page(b)...)
	}
	return f
}

func newContent(t *testing.T, limit int64) *content {
	t.Helper()
	c, err := openContent(t.TempDir(), limit)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (c *content) announceOne(t *testing.T, pages uint64, final bool) {
	t.Helper()
	if err := c.announce([]pagesync.Region{{PID: 1, Start: at, End: at + pages*pageSize}}, final); err != nil {
		t.Fatal(err)
	}
}

func (c *content) putAll(t *testing.T, frames ...pagesync.Frame) {
	t.Helper()
	for _, f := range frames {
		if err := c.put(f); err != nil {
			t.Fatalf("%v of %v: %v", f.Kind, f.Region(), err)
		}
	}
}

// want asserts what is known of the pages from at on: '?' nothing for sure, '0'
// zeros, otherwise the byte that fills the page.
func (c *content) want(t *testing.T, pages string) {
	t.Helper()
	missing := int64(0)
	for i := range len(pages) {
		address := uint64(at + i*pageSize)
		slot, ok := c.slot(1, address)
		if !ok {
			t.Fatalf("page %d has no slot", i)
		}
		if pid, back := c.pageOf(slot); pid != 1 || back != address {
			t.Errorf("slot %d is page %#x of %d", slot, back, pid)
		}
		got := byte('?')
		switch state, _ := c.run(slot, 1); state {
		case stateZero:
			got = '0'
		case stateData:
			b := make([]byte, pageSize)
			if err := c.read(slot, b); err != nil {
				t.Fatal(err)
			}
			if got = b[0]; !bytes.Equal(b, page(got)) {
				t.Errorf("page %d is mixed", i)
			}
		default:
			missing++
		}
		if got != pages[i] {
			t.Errorf("page %d is %c instead of %c", i, got, pages[i])
		}
	}
	if c.final && c.missing() != missing {
		t.Errorf("%d pages are missing; %d are said to", missing, c.missing())
	}
}

func TestContent(t *testing.T) {
	c := newContent(t, 0)
	c.announceOne(t, 20, false)
	c.putAll(t, frame(pagesync.KindData, at, 3, 'a', 'b', 'c'), frame(pagesync.KindZero, at+3*pageSize, 1),
		frame(pagesync.KindData, at+14*pageSize, 4, 'm', 'n', 'o', 'p')) // across two windows
	c.want(t, "????????????????????")
	c.announceOne(t, 20, true)
	c.want(t, "????????????????????")
	c.putAll(t, frame(pagesync.KindSame, at, 1), frame(pagesync.KindData, at+pageSize, 1, 'B'), frame(pagesync.KindSame, at+3*pageSize, 1))
	c.want(t, "aB?0????????????????")
	c.putAll(t, frame(pagesync.KindSame, at+14*pageSize, 4), frame(pagesync.KindAbsent, at+4*pageSize, 9))
	c.want(t, "aB?0000000000?mnop??")
	// What is verified stays as it is, whatever is said again.
	c.putAll(t, frame(pagesync.KindData, at, 4, 'x', 'x', 'C', 'x'), frame(pagesync.KindZero, at, 3), frame(pagesync.KindSame, at, 4))
	c.want(t, "aBC0000000000?mnop??")

	first, _ := c.slot(1, at)
	if queue, _, all := c.takeArrivals(); all || len(queue) != 1 || queue[0] != (arrival{first + 1, 2}) {
		t.Errorf("after the freeze came %v", queue)
	}
	again, err := openContent(c.dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	again.want(t, "aBC0000000000?mnop??")
	again.putAll(t, frame(pagesync.KindZero, at+13*pageSize, 1), frame(pagesync.KindAbsent, at+18*pageSize, 2))
	again.want(t, "aBC00000000000mnop00")
	if _, _, all := again.takeArrivals(); !all {
		t.Error("not all is known to have arrived")
	}
	if err := again.remove(); err != nil {
		t.Error(err)
	}
}

// A reservation of a TiB that nobody uses costs next to nothing.
func TestContentSparse(t *testing.T) {
	c := newContent(t, 0)
	region := pagesync.Region{PID: 1, Start: 1 << 40, End: 2 << 40}
	if err := c.announce([]pagesync.Region{region}, true); err != nil {
		t.Fatal(err)
	}
	c.putAll(t, pagesync.Frame{Kind: pagesync.KindData, PID: 1, Address: 1 << 40, Pages: 1, Payload: page('a')},
		pagesync.Frame{Kind: pagesync.KindAbsent, PID: 1, Address: 1<<40 + pageSize, Pages: 1<<28 - 1})
	if n := c.missing(); n != 0 {
		t.Errorf("%d pages are missing", n)
	}
	c.putAll(t, pagesync.Frame{Kind: pagesync.KindSame, PID: 1, Address: 1 << 40, Pages: 1 << 28})
	if slot, _ := c.slot(1, 3<<39); c.state(slot) != stateZero {
		t.Errorf("the middle is %d", c.state(slot))
	}
}

func TestContentRefuses(t *testing.T) {
	for name, try := range map[string]func(c *content) error{
		"before a region": func(c *content) error { return c.put(frame(pagesync.KindZero, at-pageSize, 1)) },
		"beyond a region": func(c *content) error { return c.put(frame(pagesync.KindZero, at+9*pageSize, 2)) },
		"another process": func(c *content) error {
			return c.put(pagesync.Frame{Kind: pagesync.KindZero, PID: 2, Address: at, Pages: 1})
		},
		"same too early":   func(c *content) error { return c.put(frame(pagesync.KindSame, at, 1)) },
		"absent too early": func(c *content) error { return c.put(frame(pagesync.KindAbsent, at, 1)) },
		"too much":         func(c *content) error { return c.put(frame(pagesync.KindData, at, 5, 1, 2, 3, 4, 5)) },
		"too far apart": func(c *content) error {
			return c.announce([]pagesync.Region{{PID: 1, Start: 0, End: (maxWindows + 1) << windowShift}}, false)
		},
		"same as nothing": func(c *content) error {
			c.announceOne(t, 10, true)
			return c.put(frame(pagesync.KindSame, at, 1))
		},
		"other final regions": func(c *content) error {
			c.announceOne(t, 10, true)
			return c.announce([]pagesync.Region{{PID: 1, Start: at, End: at + pageSize}}, true)
		},
		"regions after the final": func(c *content) error {
			c.announceOne(t, 10, true)
			return c.announce([]pagesync.Region{{PID: 1, Start: at, End: at + 10*pageSize}}, false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newContent(t, 4*pageSize)
			c.announceOne(t, 10, false)
			if err := try(c); !errors.Is(err, errSource) {
				t.Errorf("%v", err)
			}
		})
	}
}

// Pages that change in each pass are stored once: they do not use up the limit.
func TestContentLimit(t *testing.T) {
	c := newContent(t, 64*pageSize)
	c.announceOne(t, 10, false)
	for i := range 100 {
		c.putAll(t, frame(pagesync.KindData, at, 4, byte(i), 1, 2, 3))
	}
}

func TestWants(t *testing.T) {
	c := newContent(t, 0)
	c.announceOne(t, 40, true)
	c.putAll(t, frame(pagesync.KindZero, at+5*pageSize, 5))
	slot, _ := c.slot(1, at+2*pageSize)
	if !c.ask(slot) || c.ask(slot) {
		t.Error("a page is asked for once")
	}
	if n := c.unsaidRun(slot, 16); n != 3 {
		t.Errorf("%d pages are missing there", n)
	}
	if slots := c.unasked(); len(slots) != 1 || slots[0] != slot || len(c.unasked()) != 0 {
		t.Errorf("to be asked for: %v", slots)
	}
	c.askAgain()
	if len(c.unasked()) != 1 {
		t.Error("a new connection asks for nothing")
	}
	var got uint64
	for region, address := 0, uint64(0); ; {
		var a arrival
		if a, region, address = c.nextUnsaid(region, address, 8); a.pages == 0 {
			break
		}
		if a.pages > 8 || c.unsaidIn(a) != a.pages {
			t.Errorf("asks for %d pages of which %d are missing", a.pages, c.unsaidIn(a))
		}
		got += a.pages
	}
	if got != 35 {
		t.Errorf("asks for %d pages", got)
	}
	c.putAll(t, frame(pagesync.KindData, at+2*pageSize, 1, 'x'))
	c.askAgain()
	if len(c.unasked()) != 0 {
		t.Error("asks for what is there")
	}
}

func TestFreezer(t *testing.T) {
	for name, test := range map[string]struct{ thawed, frozen, freezer, cpu string }{
		"cgroup.freeze": {"0", "1", "pods/a", "pods/a"},
		"freezer.state": {"THAWED", "FROZEN", "freezer/pods/a", "cpu/pods/a"},
	} {
		t.Run(name, func(t *testing.T) {
			root, words := t.TempDir(), [2]string{test.thawed, test.frozen}
			dir := filepath.Join(root, test.freezer)
			path := filepath.Join(dir, name)
			idle := filepath.Join(root, test.cpu, "cpu.idle")
			for _, file := range []string{path, idle} {
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(idle, []byte("0"), 0o600); err != nil {
				t.Fatal(err)
			}
			read := func() string {
				b, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				return string(b)
			}
			write := func(word string) {
				if err := os.WriteFile(path, []byte(word), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			write(words[0] + "\n")
			m, err := openMeta(dir)
			if err != nil {
				t.Fatal(err)
			}
			check := func(err error, want string) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
				if got := read(); got != want {
					t.Errorf("%q instead of %q", got, want)
				}
				wantIdle := map[string]string{words[0]: "0", words[1]: "1"}[want]
				if got, err := os.ReadFile(idle); wantIdle != "" && (err != nil || string(got) != wantIdle) {
					t.Errorf("cpu.idle is %q, %v; want %q", got, err, wantIdle)
				}
			}
			check(m.freeze(freezer(dir), "one"), words[1])
			check(m.freeze(freezer(dir), "two"), words[1])
			check(m.thaw(freezer(dir), "one"), words[1])
			if again, err := openMeta(dir); err != nil || len(again.get().Frozen) != 1 || again.get().Frozen[0] != "two" {
				t.Errorf("%+v, %v", again.get(), err)
			}
			check(m.thaw(freezer(dir), "two"), words[0])
			write(words[1] + "\n") // somebody pauses the pod
			check(m.freeze(freezer(dir), "one"), words[1]+"\n")
			check(m.thaw(freezer(dir), "one"), words[1]+"\n")
		})
	}
}
