package pager

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"podd/pagesync"
	"podd/reserve"
)

const (
	// A window is 1 GiB of a process's addresses. The store has a place for each
	// that a region touches; a page's number in the store is its slot.
	windowShift = 30
	windowPages = 1 << (windowShift - 12)
	maxWindows  = 1 << 14
	maxSlots    = maxWindows * windowPages

	windowEntry = 16 // bytes in the table of windows: u32 process, u8 fill, 3 reserved, u64 number + 1
	maxArrivals = 1 << 16
)

// What is known of a page. In a window whose fill is not 0 that is what is known
// of pages that were never mentioned.
const (
	stateUnsaid    = 0
	stateCandidate = 1 // the store has what it was before the freeze
	stateBlank     = 2 // it was zeros before the freeze
	stateData      = 3 // verified: the store has it
	stateZero      = 4 // verified: it reads as zeros
)

// errSource means that the source said what it must not.
var errSource = errors.New("the source broke the protocol")

type windowKey struct {
	pid    int
	number uint64 // address >> windowShift
}

// arrival is pages that came after the freeze.
type arrival struct{ slot, pages uint64 }

// content is what the pod's memory was when it was frozen, as far as it is known.
// Frames change it, from one goroutine at a time; anybody may ask, holding mu.
type content struct {
	dir   string
	limit int64 // bytes of the store; 0 for none but the reserve
	file  *os.File
	meter reserve.Meter
	// states has a byte for each slot, table an entry for each window.
	states, table []byte

	mu       sync.Mutex
	windows  map[windowKey]int
	keys     []windowKey
	touched  []bool // a state in the window was set
	regions  []pagesync.Region
	final    bool
	unsaid   int64 // pages of the final regions that are not verified
	data     int64 // pages that are stateData
	stored   int64 // pages that were ever stored
	arrivals []arrival
	// overflow means that arrivals are missing from the list.
	overflow bool
	// asked are the slots that a fault waits for: whether the source was told.
	asked map[uint64]bool
}

// openContent opens the store in dir, or makes it.
func openContent(dir string, limit int64) (*content, error) {
	c := &content{dir: dir, limit: limit, windows: map[windowKey]int{}, asked: map[uint64]bool{}}
	var err error
	if c.file, err = os.OpenFile(filepath.Join(dir, "pages"), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
		return nil, fmt.Errorf("opening the store: %w", err)
	}
	if c.states, err = mapFile(filepath.Join(dir, "states"), maxSlots); err != nil {
		return nil, err
	}
	if c.table, err = mapFile(filepath.Join(dir, "windows"), maxWindows*windowEntry); err != nil {
		return nil, err
	}
	for i := range maxWindows {
		e := c.table[i*windowEntry:]
		number := binary.LittleEndian.Uint64(e[8:])
		if number == 0 {
			break
		}
		key := windowKey{int(binary.LittleEndian.Uint32(e)), number - 1}
		c.windows[key] = i
		c.keys = append(c.keys, key)
		c.touched = append(c.touched, e[4] == stateUnsaid)
	}
	return c, c.readRegions()
}

// readRegions finds the final regions, if they were known.
func (c *content) readRegions() error {
	f, err := os.Open(filepath.Join(c.dir, "regions"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("opening the store: %w", err)
	}
	defer f.Close()
	frame, err := pagesync.NewReader(f).Next()
	if err != nil {
		return fmt.Errorf("reading the regions of the store: %w", err)
	}
	c.regions, c.final, c.overflow = slices.Clone(frame.Regions), true, true
	return c.eachSlot(c.regions, func(slot, pages uint64) error {
		for s := slot; s < slot+pages; s++ {
			switch c.state(s) {
			case stateData:
				c.data++
			case stateZero:
			default:
				c.unsaid++
			}
		}
		return nil
	})
}

// eachSlot calls f for the slots of regions, window by window. They must be
// announced.
func (c *content) eachSlot(regions []pagesync.Region, f func(slot, pages uint64) error) error {
	for _, r := range regions {
		for address := r.Start; address < r.End; {
			end := min(r.End, (address>>windowShift+1)<<windowShift)
			slot, ok := c.slot(r.PID, address)
			if !ok {
				return fmt.Errorf("%w: %v is in no region", errSource, r)
			}
			if err := f(slot, (end-address)/pageSize); err != nil {
				return err
			}
			address = end
		}
	}
	return nil
}

// slot finds the place of a page of a process.
func (c *content) slot(pid int, address uint64) (uint64, bool) {
	w, ok := c.windows[windowKey{pid, address >> windowShift}]
	return uint64(w)*windowPages + address%(1<<windowShift)/pageSize, ok
}

// page is the inverse of slot.
func (c *content) page(slot uint64) (pid int, address uint64) {
	key := c.keys[slot/windowPages]
	return key.pid, key.number<<windowShift + slot%windowPages*pageSize
}

// state is what is known of a slot. mu is held, or the caller is the goroutine
// that brings frames.
func (c *content) state(slot uint64) byte {
	if s := c.states[slot]; s != stateUnsaid {
		return s
	}
	return c.table[slot/windowPages*windowEntry+4]
}

// run is the state of a slot and how many from it on, up to limit, are in the same;
// states that are not verified count as one, stateUnsaid.
func (c *content) run(slot, limit uint64) (state byte, pages uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	state = verified(c.state(slot))
	for pages = 1; pages < limit && verified(c.state(slot+pages)) == state; pages++ {
	}
	return state, pages
}

func verified(state byte) byte {
	if state < stateData {
		return stateUnsaid
	}
	return state
}

// announce takes the regions of a frame; final ones hold for good.
func (c *content) announce(regions []pagesync.Region, final bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.final {
		if !final || !slices.Equal(regions, c.regions) {
			return fmt.Errorf("%w: other regions after the final ones", errSource)
		}
		return nil
	}
	for _, r := range regions {
		for number := r.Start >> windowShift; number <= (r.End-1)>>windowShift; number++ {
			if err := c.addWindow(windowKey{r.PID, number}); err != nil {
				return err
			}
		}
	}
	c.regions = slices.Clone(regions)
	if !final {
		return nil
	}
	for _, r := range regions {
		c.unsaid += int64(r.Pages())
	}
	if err := c.writeRegions(); err != nil {
		return err
	}
	c.final = true
	return nil
}

func (c *content) addWindow(key windowKey) error {
	if _, ok := c.windows[key]; ok {
		return nil
	}
	i := len(c.keys)
	if i == maxWindows {
		return fmt.Errorf("%w: its regions touch more than %d times 1 GiB", errSource, maxWindows)
	}
	e := c.table[i*windowEntry:]
	binary.LittleEndian.PutUint32(e, uint32(key.pid))
	binary.LittleEndian.PutUint64(e[8:], key.number+1)
	c.windows[key] = i
	c.keys = append(c.keys, key)
	c.touched = append(c.touched, false)
	return nil
}

func (c *content) writeRegions() error {
	f, err := renameio.NewPendingFile(filepath.Join(c.dir, "regions"), renameio.WithPermissions(0o600))
	if err != nil {
		return fmt.Errorf("writing the regions: %w", err)
	}
	defer f.Cleanup() // does nothing once it has its name
	w := pagesync.NewWriter(f)
	err = w.Write(pagesync.Frame{Kind: pagesync.KindRegions, Flags: pagesync.FlagFinal, Regions: c.regions})
	if err = errors.Join(err, w.Flush()); err != nil {
		return fmt.Errorf("writing the regions: %w", err)
	}
	if err := f.CloseAtomicallyReplace(); err != nil {
		return fmt.Errorf("writing the regions: %w", err)
	}
	return nil
}

// inside reports whether all pages of a range are in regions.
func (c *content) inside(r pagesync.Region) bool {
	i, found := slices.BinarySearchFunc(c.regions, r, func(e, r pagesync.Region) int {
		if e.PID != r.PID {
			return e.PID - r.PID
		}
		switch {
		case e.End <= r.Start:
			return -1
		case e.Start > r.Start:
			return 1
		}
		return 0
	})
	for ; found && i < len(c.regions); i++ {
		e := c.regions[i]
		if e.PID != r.PID || e.Start > r.Start {
			return false
		}
		if e.End >= r.End {
			return true
		}
		r.Start = e.End
	}
	return false
}

func (c *content) isFinal() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.final
}

// missing is how many pages of the final regions are not verified.
func (c *content) missing() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.unsaid
}

// pageOf is page for who does not hold mu.
func (c *content) pageOf(slot uint64) (pid int, address uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.page(slot)
}

// takeArrivals returns what arrived since the last call. With overflow that is not
// all; with all nothing else will.
func (c *content) takeArrivals() (queue []arrival, overflow, all bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	queue, overflow, all = c.arrivals, c.overflow, c.unsaid == 0
	c.arrivals, c.overflow = nil, false
	return queue, overflow, all
}

// read reads verified pages into b.
func (c *content) read(slot uint64, b []byte) error {
	n, err := c.file.ReadAt(b, int64(slot)*pageSize)
	if n < len(b) {
		return fmt.Errorf("reading the store at %#x: %w", slot*pageSize, err)
	}
	return nil
}

// release frees what the store holds of pages that nobody lacks any more.
func (c *content) release(slot, pages uint64) error {
	err := unix.Fallocate(int(c.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(slot)*pageSize, int64(pages)*pageSize)
	if err != nil {
		return fmt.Errorf("releasing memory of the store: %w", err)
	}
	return nil
}

// remove deletes the store's files.
func (c *content) remove() error {
	var errs []error
	for _, name := range []string{"pages", "states", "windows", "regions"} {
		errs = append(errs, os.Remove(filepath.Join(c.dir, name)))
	}
	return errors.Join(errs...)
}
