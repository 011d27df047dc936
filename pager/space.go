package pager

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"podd/pagesync"
)

// maxExtents bounds the pieces into which a program can cut the memory that is
// missing. It is twice what the kernel lets a process have (vm.max_map_count),
// since a piece that was unmapped may be found so late.
const maxExtents = 1 << 17

// maxVacated bounds what is remembered of events that are yet to come.
const maxVacated = 1 << 10

// The layout of a space's file. Numbers are of the machine.
const (
	spaceState  = 0  // u32: spaceLive or spaceEnded, 0 while it is made
	spacePID    = 4  // u32: of the process whose content it is
	spaceFD     = 8  // 2 x i32: the userfaultfd in the keeper's table, by its generation's parity
	spaceActive = 16 // u32: which of the two tables of extents counts
	spaceCounts = 20 // 2 x u32: the extents in each

	extentSize = 24 // u64 start, u64 end, u64 slot | movedBit
	movedBit   = 1 << 63

	spaceTables = 4096
	spaceHad    = spaceTables + 2*maxExtents*extentSize // a bit for each slot
	spaceSize   = spaceHad + maxSlots/8

	spaceLive  = 1
	spaceEnded = 2
)

// errExtents means that a program cut its memory into too many pieces.
var errExtents = errors.New("the memory is in too many pieces")

// extent says that the addresses from start to end are to have the content of the
// slots from slot on. It never crosses a window.
type extent struct {
	start, end, slot uint64
	// moved means that mremap(2) has put it where it is a moment ago. munmap(2) is
	// reported after the fact, and by another thread perhaps late, so that an event
	// that says that these addresses were unmapped may be older than the move. It
	// is not from the moment on at which no event was under way: see calm. Only where
	// something else was before the move can there be such an event: otherwise what was
	// unmapped, and perhaps mapped again by growth, which is no event, was so later.
	moved bool
}

func (e extent) at(address uint64) uint64 { return e.slot + (address-e.start)/pageSize }
func (e extent) pages() uint64            { return (e.end - e.start) / pageSize }

// space is an address space that is filled.
type space struct {
	id      int
	pid     int // of the process whose content it is
	child   bool
	uffd    userfault
	path    string
	b       []byte
	extents []extent // ascending
	had     []uint64 // the slots that the space does not lack any more
	// waiting are addresses at which a fault waits for content that is not here,
	// later those to be tried again after the next event.
	waiting map[uint64]int64 // with the time as in late
	later   []late
	placed  bool // extents are what they should be
	reading bool // a message of its is being obeyed
	ended   bool // it is to end after that
	// unsettled: there are extents that are moved, or ranges vacated. suspects are ranges of them that
	// may have been unmapped, or may not.
	unsettled bool
	suspects  []extent
	// vacated are ranges of which an event may yet say that they were unmapped: mremap(2) has
	// left them, which it says before, and another thread may have moved something there.
	vacated []span
	cursor  uint64 // address up to which the background is done
	missing bool   // something before the cursor was not here
	rescan  bool   // something was moved before the cursor
	clean   bool   // all that can be filled was
	follow  follow
	retryAt int64 // monotonic ns; 0 for now
}

// span is a range of addresses.
type span struct{ start, end uint64 }

// late is a fault that could not be served yet.
type late struct {
	address uint64
	since   int64 // when it was read, monotonic ns
}

// follow is the pages after those that a fault has asked for.
type follow struct {
	address uint64
	pages   uint64 // still to be filled
	window  uint64 // how many there were
	next    uint64 // a fault here goes on in sequence
}

// newSpace makes the file of a space. It does not count until live is called.
func newSpace(path string, id, pid int) (*space, error) {
	s := &space{id: id, pid: pid, path: path, waiting: map[uint64]int64{}}
	if err := s.open(); err != nil {
		return nil, err
	}
	binary.NativeEndian.PutUint32(s.b[spacePID:], uint32(pid))
	return s, nil
}

// openSpace reads the file of a space; nil if it does not count.
func openSpace(path string, id int) (*space, error) {
	s := &space{id: id, path: path, waiting: map[uint64]int64{}}
	if err := s.open(); err != nil {
		return nil, err
	}
	if s.word(spaceState).Load() != spaceLive {
		return nil, s.remove()
	}
	s.pid = int(binary.NativeEndian.Uint32(s.b[spacePID:]))
	active := s.word(spaceActive).Load() & 1
	count := s.word(spaceCounts + 4*int(active)).Load()
	table := s.table(active)
	for i := range min(int(count), maxExtents) {
		e := table[i*extentSize:]
		slot := binary.NativeEndian.Uint64(e[16:])
		s.extents = append(s.extents, extent{
			binary.NativeEndian.Uint64(e), binary.NativeEndian.Uint64(e[8:]), slot &^ movedBit, slot&movedBit != 0,
		})
	}
	s.placed = len(s.extents) > 0
	// What the last pager knew of events under way is lost.
	s.vacated, s.unsettled = []span{{0, math.MaxUint64}}, true
	return s, nil
}

func (s *space) open() (err error) {
	if s.b, err = mapFile(s.path, spaceSize); err != nil {
		return err
	}
	s.had = unsafe.Slice((*uint64)(unsafe.Pointer(&s.b[spaceHad])), maxSlots/64)
	return nil
}

func (s *space) word(at int) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&s.b[at])) }

func (s *space) table(which uint32) []byte {
	return s.b[spaceTables+int(which)*maxExtents*extentSize:][:maxExtents*extentSize]
}

// descriptor is where the userfaultfd is in the keeper's table of a generation.
func (s *space) descriptor(generation int) int {
	return int(int32(s.word(spaceFD + 4*(generation&1)).Load()))
}

func (s *space) setDescriptor(generation, fd int) {
	s.word(spaceFD + 4*(generation&1)).Store(uint32(int32(fd)))
}

// live makes the space count, with all that it has.
func (s *space) live() error {
	err := s.save()
	s.word(spaceState).Store(spaceLive)
	return err
}

// end makes the space not count any more and closes its userfaultfd: what the
// program has no page for reads as zeros from now on.
func (s *space) end() error {
	s.word(spaceState).Store(spaceEnded)
	err := unix.Close(int(s.uffd))
	return errors.Join(err, s.remove())
}

func (s *space) remove() error {
	return errors.Join(unix.Munmap(s.b), os.Remove(s.path))
}

// save writes the extents: to the table that does not count, which then does.
func (s *space) save() error {
	if len(s.extents) > maxExtents {
		return fmt.Errorf("process %d: %w", s.pid, errExtents)
	}
	to := s.word(spaceActive).Load()&1 ^ 1
	table := s.table(to)
	for i, e := range s.extents {
		b := table[i*extentSize:]
		slot := e.slot
		if e.moved {
			slot |= movedBit
		}
		binary.NativeEndian.PutUint64(b, e.start)
		binary.NativeEndian.PutUint64(b[8:], e.end)
		binary.NativeEndian.PutUint64(b[16:], slot)
	}
	s.word(spaceCounts + 4*int(to)).Store(uint32(len(s.extents)))
	s.word(spaceActive).Store(to)
	return nil
}

// setRegions makes the content of a process the space's, at its own addresses.
func (s *space) setRegions(c *content) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.extents, s.placed = s.extents[:0], true
	for _, r := range c.regions {
		if r.PID != s.pid {
			continue
		}
		at := r.Start
		err := c.eachSlot([]pagesync.Region{r}, func(slot, pages uint64) error {
			s.extents = append(s.extents, extent{start: at, end: at + pages*pageSize, slot: slot})
			at += pages * pageSize
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// inherit makes the space a child of its parent.
func (s *space) inherit(parent *space) {
	s.child, s.placed = true, parent.placed
	s.extents = slices.Clone(parent.extents)
	s.unsettled = parent.unsettled
	last := uint64(maxWindows)
	const words = windowPages / 64
	for _, e := range s.extents {
		if w := e.slot / windowPages; w != last {
			copy(s.had[w*words:(w+1)*words], parent.had[w*words:(w+1)*words])
			last = w
		}
	}
}

// find returns the index of the extent that has the address, or else of the first
// after it.
func (s *space) find(address uint64) (i int, found bool) {
	i, _ = slices.BinarySearchFunc(s.extents, address, func(e extent, a uint64) int {
		if e.end <= a {
			return -1
		}
		return 1
	})
	return i, i < len(s.extents) && s.extents[i].start <= address
}

func (s *space) has(slot uint64) bool { return s.had[slot/64]&(1<<(slot%64)) != 0 }

// settle marks pages as no longer lacking.
func (s *space) settle(slot, pages uint64) {
	for end := slot + pages; slot < end; {
		if slot%64 == 0 && end-slot >= 64 {
			s.had[slot/64] = ^uint64(0)
			slot += 64
			continue
		}
		s.had[slot/64] |= 1 << (slot % 64)
		slot++
	}
}

// each calls f for the pieces of extents in a range of addresses.
func (s *space) each(start, end uint64, f func(e extent)) {
	i, _ := s.find(start)
	for ; i < len(s.extents) && s.extents[i].start < end; i++ {
		e := s.extents[i]
		from, to := max(start, e.start), min(end, e.end)
		f(extent{from, to, e.at(from), e.moved})
	}
}

// drop obeys that the program gave up a range: it has zeros there.
func (s *space) drop(start, end uint64) {
	s.each(start, end, func(e extent) { s.settle(e.slot, e.pages()) })
}

// unmap obeys that a range was unmapped. Doing it twice does no harm.
func (s *space) unmap(start, end uint64) error {
	var gone []extent
	s.each(start, end, func(e extent) {
		if e.moved {
			s.suspects = append(s.suspects, e)
		} else {
			gone = append(gone, e)
		}
	})
	for _, e := range gone {
		s.settle(e.slot, e.pages())
		s.cut(e.start, e.end)
	}
	if len(gone) == 0 {
		return nil
	}
	return s.save()
}

// suspect reports whether it is to be found out whether an address is mapped.
func (s *space) suspect(address uint64) bool {
	return slices.ContainsFunc(s.suspects, func(e extent) bool { return e.start <= address && address < e.end })
}

// calm is called when the kernel says that no event is under way. What is mapped
// now is what was moved there; what is unmapped later was moved before.
func (s *space) calm() error {
	for _, e := range s.suspects {
		// Where something is mapped that is filled from here the move came last.
		ok, err := s.uffd.probe(e.start, pageSize)
		if err != nil && err != unix.EAGAIN && err != unix.ESRCH {
			return fmt.Errorf("looking at process %d: %w", s.pid, err)
		}
		if err == unix.EAGAIN {
			return nil
		}
		if !ok {
			s.settle(e.slot, e.pages())
			s.cut(e.start, e.end)
		}
	}
	s.suspects, s.vacated = s.suspects[:0], s.vacated[:0]
	for i := range s.extents {
		s.extents[i].moved = false
	}
	s.unsettled = false
	return nil
}

// remap obeys that a range was moved. Doing it twice does no harm.
func (s *space) remap(from, to, bytes uint64) error {
	// It was unmapped, or nothing could be moved there, and that is yet to be said.
	i, _ := s.find(to)
	late := i < len(s.extents) && s.extents[i].start < to+bytes ||
		slices.ContainsFunc(s.vacated, func(v span) bool { return v.start < to+bytes && to < v.end })
	if len(s.vacated) == maxVacated {
		s.vacated = []span{{0, math.MaxUint64}} // a program that never rests
	}
	s.vacated, s.unsettled = append(s.vacated, span{from, from + bytes}), true
	var moving []extent
	s.each(from, from+bytes, func(e extent) {
		moving = append(moving, extent{e.start - from + to, e.end - from + to, e.slot, late})
	})
	if len(moving) == 0 {
		return nil
	}
	s.cut(from, from+bytes)
	// What was known of the destination is of a mapping that is no more.
	for _, e := range moving {
		s.cut(e.start, e.end)
	}
	s.extents = append(s.extents, moving...)
	slices.SortFunc(s.extents, func(a, b extent) int { return cmp.Compare(a.start, b.start) })
	s.rescan, s.clean = true, false
	return s.save()
}

// cut takes a range out of the extents.
func (s *space) cut(start, end uint64) {
	i, _ := s.find(start)
	j := i
	var rest []extent
	for ; j < len(s.extents) && s.extents[j].start < end; j++ {
		e := s.extents[j]
		if e.start < start {
			rest = append(rest, extent{e.start, start, e.slot, e.moved})
		}
		if e.end > end {
			rest = append(rest, extent{end, e.end, e.at(end), e.moved})
		}
	}
	s.extents = slices.Replace(s.extents, i, j, rest...)
}
