package pager

import (
	"fmt"

	"golang.org/x/sys/unix"

	"podd/pagesync"
)

// This file is how frames change the content.

// put takes a frame about pages. It is called by one goroutine at a time.
func (c *content) put(f pagesync.Frame) error {
	r := f.Region()
	if !c.inside(r) {
		return fmt.Errorf("%w: %v of %v, which is in no region", errSource, f.Kind, r)
	}
	if !c.final && (f.Kind == pagesync.KindSame || f.Kind == pagesync.KindAbsent) {
		return fmt.Errorf("%w: %v before the final regions", errSource, f.Kind)
	}
	payload := f.Payload
	return c.eachSlot([]pagesync.Region{r}, func(slot, pages uint64) error {
		switch f.Kind {
		case pagesync.KindData:
			mine := payload[:pages*pageSize]
			payload = payload[len(mine):]
			return c.store(slot, mine)
		case pagesync.KindSame:
			return c.same(slot, pages)
		}
		c.blank(slot, pages)
		return nil
	})
}

// store stores pages that are not verified yet. What is verified stays: somebody
// may have it already.
func (c *content) store(slot uint64, payload []byte) error {
	to := byte(stateCandidate)
	if c.final {
		to = stateData
	}
	for len(payload) > 0 {
		skip := verified(c.state(slot)) != stateUnsaid
		n := uint64(1)
		for int(n)*pageSize < len(payload) && (verified(c.state(slot+n)) != stateUnsaid) == skip {
			n++
		}
		if !skip {
			if err := c.write(slot, payload[:n*pageSize]); err != nil {
				return err
			}
			c.set(slot, n, to)
		}
		slot += n
		payload = payload[n*pageSize:]
	}
	return nil
}

func (c *content) write(slot uint64, b []byte) error {
	pages := int64(len(b) / pageSize)
	if c.stored += pages; c.limit > 0 && c.stored*pageSize > c.limit {
		// Pages that changed between passes are counted each time; they are
		// stored once.
		var s unix.Stat_t
		if err := unix.Fstat(int(c.file.Fd()), &s); err != nil {
			return fmt.Errorf("measuring the store: %w", err)
		}
		if c.stored = s.Blocks*512/pageSize + pages; c.stored*pageSize > c.limit {
			return fmt.Errorf("%w: it sent more than the %d MiB that are expected", errSource, c.limit>>20)
		}
	}
	if err := c.meter.Add(int(c.file.Fd()), int64(len(b)), 0); err != nil {
		return fmt.Errorf("storing memory: %w", err)
	}
	if _, err := c.file.WriteAt(b, int64(slot)*pageSize); err != nil {
		return fmt.Errorf("storing memory: %w", err)
	}
	return nil
}

// set marks pages that were not verified.
func (c *content) set(slot, pages uint64, to byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.touched[slot/windowPages] = true
	for s := slot; s < slot+pages; s++ {
		c.states[s] = to
	}
	if to < stateData {
		return
	}
	c.unsaid -= int64(pages)
	if to == stateData {
		c.data += int64(pages)
		c.arrive(slot, pages)
	}
	c.answered(slot, pages)
}

// arrive remembers the order in which pages came.
func (c *content) arrive(slot, pages uint64) {
	if n := len(c.arrivals); n > 0 && c.arrivals[n-1].slot+c.arrivals[n-1].pages == slot && slot%windowPages != 0 {
		c.arrivals[n-1].pages += pages
	} else if n < maxArrivals {
		c.arrivals = append(c.arrivals, arrival{slot, pages})
	} else {
		c.overflow = true
	}
}

func (c *content) answered(slot, pages uint64) {
	if len(c.asked) == 0 {
		return
	}
	if pages > uint64(len(c.asked)) {
		for s := range c.asked {
			if s >= slot && s < slot+pages {
				delete(c.asked, s)
			}
		}
		return
	}
	for s := slot; s < slot+pages; s++ {
		delete(c.asked, s)
	}
}

// blank makes pages zeros.
func (c *content) blank(slot, pages uint64) {
	if !c.final {
		c.set(slot, pages, stateBlank)
		return
	}
	w := slot / windowPages
	if pages == windowPages && !c.touched[w] && c.table[w*windowEntry+4] == stateUnsaid {
		c.mu.Lock()
		c.table[w*windowEntry+4] = stateZero
		c.unsaid -= int64(pages)
		c.answered(slot, pages)
		c.mu.Unlock()
		return
	}
	for end := slot + pages; slot < end; {
		if verified(c.state(slot)) != stateUnsaid {
			slot++
			continue
		}
		n := uint64(1)
		for slot+n < end && verified(c.state(slot+n)) == stateUnsaid {
			n++
		}
		c.set(slot, n, stateZero)
		slot += n
	}
}

// same confirms candidates.
func (c *content) same(slot, pages uint64) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w := slot / windowPages; !c.touched[w] && c.table[w*windowEntry+4] == stateZero {
		return nil
	}
	for s := slot; s < slot+pages; s++ {
		switch c.states[s] {
		case stateCandidate:
			c.states[s] = stateData
			c.data++
			c.unsaid--
		case stateBlank:
			c.states[s] = stateZero
			c.unsaid--
		case stateUnsaid:
			if c.state(s) == stateUnsaid {
				pid, address := c.page(s)
				return fmt.Errorf("%w: page %#x of process %d is the same, but was never sent", errSource, address, pid)
			}
		}
	}
	if len(c.asked) > 0 {
		c.overflow = true // somebody may wait for one of these
		c.answered(slot, pages)
	}
	return nil
}
