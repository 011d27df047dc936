package pager

import "podd/pagesync"

// This file is what the content knows of what is still missing.

// ask notes that a fault waits for a page; it reports whether that is news.
func (c *content) ask(slot uint64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.asked[slot]; ok || verified(c.state(slot)) != stateUnsaid {
		return false
	}
	c.asked[slot] = false
	return true
}

// faultsWait reports whether a fault waits for a page that the source has to say.
func (c *content) faultsWait() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.asked) > 0
}

// askAgain makes all that faults wait for unasked: there is a new connection.
func (c *content) askAgain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for slot := range c.asked {
		c.asked[slot] = false
	}
}

// unasked returns what faults wait for and nobody has asked for yet.
func (c *content) unasked() []uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var slots []uint64
	for slot, sent := range c.asked {
		if !sent {
			slots = append(slots, slot)
			c.asked[slot] = true
		}
	}
	return slots
}

// unsaidRun is how many pages from slot on are not verified, up to limit and the
// end of the region.
func (c *content) unsaidRun(slot, limit uint64) (n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	pid, address := c.page(slot)
	for n < limit && (slot+n)/windowPages == slot/windowPages && verified(c.state(slot+n)) == stateUnsaid {
		if !c.inside(pagesync.Region{PID: pid, Start: address, End: address + (n+1)*pageSize}) {
			break
		}
		n++
	}
	return n
}

// unsaidIn counts the pages of a range that are not verified.
func (c *content) unsaidIn(a arrival) (n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for s := a.slot; s < a.slot+a.pages; s++ {
		if verified(c.state(s)) == stateUnsaid {
			n++
		}
	}
	return n
}

// nextUnsaid finds pages that are not verified, at most limit of them, from an
// address in a region on, and says where to go on.
func (c *content) nextUnsaid(region int, address, limit uint64) (arrival, int, uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for ; region < len(c.regions); region++ {
		r := c.regions[region]
		for at := max(address, r.Start); at < r.End; {
			end := min(r.End, (at>>windowShift+1)<<windowShift)
			slot, _ := c.slot(r.PID, at)
			left := (end - at) / pageSize
			skip := uint64(0)
			for skip < left && verified(c.state(slot+skip)) != stateUnsaid {
				skip++
			}
			if skip == left {
				at = end
				continue
			}
			slot, left, at = slot+skip, left-skip, at+skip*pageSize
			n := uint64(0)
			for n < min(left, limit) && verified(c.state(slot+n)) == stateUnsaid {
				n++
			}
			return arrival{slot, n}, region, at + n*pageSize
		}
		address = 0
	}
	return arrival{}, region, 0
}
