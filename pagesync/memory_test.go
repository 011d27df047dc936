package pagesync

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// addressOf returns where b lies, whole pages.
func addressOf(b []byte) (uint64, error) {
	a := uint64(uintptr(unsafe.Pointer(&b[0])))
	if a%PageSize != 0 {
		return 0, fmt.Errorf("%#x is not the beginning of a page", a)
	}
	return a, nil
}

func TestMasks(t *testing.T) {
	for _, c := range []struct {
		s    span
		want map[uint64]uint64
	}{
		{span{0, chunkSize}, map[uint64]uint64{0: ^uint64(0)}},
		{span{0x1000, 0x3000}, map[uint64]uint64{0: 6}},
		{span{chunkSize - 0x1000, chunkSize + 0x1000}, map[uint64]uint64{0: 1 << 63, chunkSize: 1}},
	} {
		got := make(map[uint64]uint64)
		eachChunk(c.s, func(a, pages uint64) { got[a] = pages })
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%x: %x; want %x", c.s, got, c.want)
		}
	}
	for _, mask := range []uint64{0, 1, 1 << 63, ^uint64(0), 0xf0f00000000000f1, 0x8000000000000001} {
		var again uint64
		last := -2
		for first, n := range Runs(mask) {
			if first <= last+1 || n < 1 {
				t.Errorf("%x: run %d, %d after %d", mask, first, n, last)
			}
			last = first + n - 1
			again |= ^uint64(0) >> (64 - n) << first
		}
		if again != mask {
			t.Errorf("%x comes out as %x", mask, again)
		}
	}
}

// TestBatch classifies pages at random and looks at the frames one by one.
func TestBatch(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	kinds := []Kind{0, KindData, KindData, KindSame, KindZero}
	for range 200 {
		pages := random.Uint64() | random.Uint64()
		var what [chunkPages]Kind
		var payload []byte
		for i := range what {
			what[i] = kinds[random.IntN(len(kinds))]
			if pages>>i&1 != 0 {
				payload = append(payload, bytes.Repeat([]byte{byte(i)}, PageSize)...)
			}
		}
		b := batch{pid: 3, address: chunkSize}
		b.add(payload, pages, func(page int, content []byte) Kind {
			if content[0] != byte(page) {
				t.Fatalf("page %d has the content of %d", page, content[0])
			}
			return what[page]
		})
		var seen uint64
		for _, f := range b.frames {
			if err := f.check(); err != nil {
				t.Fatal(err)
			}
			if f.Kind == KindData && f.Pages > maxRun {
				t.Errorf("%d pages in one frame", f.Pages)
			}
			for i := range f.Pages {
				page := int(f.Address-chunkSize)/PageSize + i
				if what[page] != f.Kind || f.Kind == KindData && f.Payload[i*PageSize] != byte(page) {
					t.Errorf("page %d is said to be %v", page, f.Kind)
				}
				seen |= 1 << page
			}
		}
		for i := range what {
			if said := seen>>i&1 != 0; said != (pages>>i&1 != 0 && what[i] != 0) {
				t.Errorf("page %d: said %v", i, said)
			}
		}
	}
}

// TestForget keeps what is known of pages in regions and nothing else.
func TestForget(t *testing.T) {
	for _, regions := range [][]span{
		{{0x1000, 0x3000}, {chunkSize + 0x2000, 3*chunkSize + 0x1000}},
		{{0x1000, 0x3000}, {chunkSize + 0x2000, 3*chunkSize + 0x1000}, {1 << 40, 1 << 41}}, // much larger than what is known
	} {
		p := &process{chunks: make(map[uint64]*chunk), regions: regions}
		for a := uint64(0); a < 6*chunkSize; a += chunkSize {
			p.chunkAt(a).known = ^uint64(0)
		}
		p.forget()
		want := map[uint64]uint64{0: 6, chunkSize: ^uint64(3), 2 * chunkSize: ^uint64(0), 3 * chunkSize: 1}
		got := make(map[uint64]uint64)
		for a, c := range p.chunks {
			got[a] = c.known
		}
		if fmt.Sprintf("%x", got) != fmt.Sprintf("%x", want) {
			t.Errorf("%x; want %x", got, want)
		}
	}
}

func TestLimitRegions(t *testing.T) {
	s := &Source{}
	for pid := 1; pid <= 4; pid++ {
		p := &process{identity: identity{inPod: pid}}
		for i := range uint64(maxRegions / 2) {
			size := 16 + i%3
			p.regions = append(p.regions, span{i << 20, i<<20 + size*PageSize})
		}
		s.processes = append(s.processes, p)
	}
	s.limitRegions()
	list := s.regionList()
	if len(list) != maxRegions {
		t.Errorf("%d regions; want %d", len(list), maxRegions)
	}
	if f := (Frame{Kind: KindRegions, Regions: list}); f.check() != nil {
		t.Error(f.check())
	}
	large := 0
	for _, r := range list {
		if r.Pages() == 18 {
			large++
		}
	}
	if want := 4 * (maxRegions / 2 / 3); large < want {
		t.Errorf("%d of the largest are left; want %d", large, want)
	}
}

// TestReadUpToHole reads this program's memory, from which a page was taken.
func TestReadUpToHole(t *testing.T) {
	b, err := unix.Mmap(-1, 0, 2*chunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	start, err := addressOf(b)
	if err != nil {
		t.Fatal(err)
	}
	address := (start + chunkSize - 1) &^ (chunkSize - 1)
	mine := b[address-start:][:chunkSize]
	for i := range chunkPages {
		mine[i*PageSize] = byte(i + 1)
	}
	if err := unix.Mprotect(mine[10*PageSize:11*PageSize], unix.PROT_NONE); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{identity: identity{pid: os.Getpid()}, pidfd: fd}
	defer p.close()
	c := newCopier()
	done, content, err := c.read(p, address, ^uint64(1<<3))
	if err != nil || done != 0x3ff&^uint64(1<<3) {
		t.Fatalf("pages %x, %v", done, err)
	}
	var first []byte
	for i := 0; i < len(content); i += PageSize {
		first = append(first, content[i])
	}
	if want := []byte{1, 2, 3, 5, 6, 7, 8, 9, 10}; !slices.Equal(first, want) {
		t.Errorf("got pages %v; want %v", first, want)
	}
	if done, _, err := c.read(p, address, 1<<10); err != nil || done != 0 {
		t.Errorf("of what can't be read: %x, %v", done, err)
	}
}
