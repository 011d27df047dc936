package pager

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

const (
	// Pages copied at once: after a fault, and when there was none for a while.
	minChunk = 16
	maxChunk = 128
	// Pages filled after one that a fault asked for: at first, and when faults
	// follow each other.
	minFollow = 16
	maxFollow = 512
	// scanPages is how many pages are looked at between two looks for events.
	scanPages = 1 << 15
	// zeroAhead is how many pages that read as zeros are given at once.
	zeroAhead = 64
)

// outcome of an attempt to fill pages.
type result int

const (
	resultDone    result = iota
	resultChanges        // the process changes its mappings: read events, try again
	resultNoMemory
	resultDead
)

// fault serves one page.
func (h *handler) fault(s *space, f late) error {
	h.chunk = minChunk
	address := f.address
	if s.ended {
		return nil
	}
	if since, again := s.waiting[address]; again {
		f.since = since // whatever interrupted it meanwhile
	}
	if !h.content.isFinal() {
		h.await(s, f)
		return nil
	}
	if s.suspect(address) {
		s.postpone(f, resultChanges)
		return nil
	}
	i, found := s.find(address)
	if !found {
		return h.giveZeros(s, f, 1) // memory that was not the source's
	}
	e := s.extents[i]
	slot := e.at(address)
	if s.has(slot) {
		return h.giveZeros(s, f, 1) // it gave the page up
	}
	left := (e.end - address) / pageSize
	state, n := h.content.run(slot, min(left, zeroAhead))
	switch state {
	case stateData:
		r, err := h.give(s, address, slot, 1, true)
		if err != nil || r == resultDead {
			return h.orEnd(s, err)
		}
		if r != resultDone {
			s.postpone(f, r)
			return nil
		}
		h.measure(f)
		s.setFollow(address)
		return nil
	case stateZero:
		free := uint64(1)
		for free < n && !s.has(slot+free) {
			free++
		}
		return h.giveZeros(s, f, free)
	}
	h.await(s, f)
	if h.content.ask(slot) {
		h.want()
	}
	return nil
}

// await notes that a fault waits for content that is not here.
func (h *handler) await(s *space, f late) {
	_, again := s.waiting[f.address]
	h.again = h.again || again
	s.waiting[f.address] = f.since
}

func (h *handler) orEnd(s *space, err error) error {
	if err != nil {
		return err
	}
	return h.end(s)
}

// measure notes how long a fault that was just served took.
func (h *handler) measure(f late) {
	if took := now() - f.since; took > h.worst.Load() {
		h.worst.Store(took)
	}
}

// postpone has a fault tried again after the next event, or soon.
func (s *space) postpone(f late, r result) {
	s.later = append(s.later, f)
	if r == resultNoMemory {
		s.retryAt = now() + int64(retryPause)
	}
}

func (h *handler) postponed() bool {
	for _, s := range h.spaces {
		if len(s.later) > 0 || s.unsettled {
			return true
		}
	}
	h.spun = 0
	return false
}

// postponedFaults tries faults again that could not be served.
func (h *handler) postponedFaults() error {
	for _, id := range slices.Clone(h.order) {
		s := h.spaces[id]
		if s == nil {
			continue
		}
		if s.unsettled {
			if err := h.calm(s); err != nil {
				return err
			}
		}
		if len(s.later) == 0 || s.retryAt > now() {
			continue
		}
		later := s.later
		s.later, s.retryAt = nil, 0
		for _, f := range later {
			if err := h.fault(s, f); err != nil {
				return err
			}
			if h.spaces[id] != s {
				break
			}
		}
	}
	return nil
}

// giveZeros gives pages that read as zeros; the first is waited for.
func (h *handler) giveZeros(s *space, f late, pages uint64) error {
	address := f.address
	n, err := s.uffd.zero(address, pages*pageSize)
	switch {
	case err == nil, n > 0:
		h.measure(f)
		return nil
	case err == unix.ENOENT && pages > 1: // it is in several mappings by now
		return h.giveZeros(s, f, 1)
	case err == unix.EAGAIN:
		s.postpone(f, resultChanges)
		return nil
	case err == unix.ENOMEM:
		s.postpone(f, resultNoMemory)
		return nil
	case err == unix.ESRCH:
		return h.end(s)
	case err == unix.EEXIST, err == unix.ENOENT: // who waits is to see for himself
		if err := s.uffd.wake(address, pageSize); err != nil {
			return fmt.Errorf("waking process %d: %w", s.pid, err)
		}
		return nil
	}
	return fmt.Errorf("giving process %d zeros at %#x: %w", s.pid, address, err)
}

// give copies verified pages into a space. With waited somebody waits for the
// first.
func (h *handler) give(s *space, address, slot, pages uint64, waited bool) (result, error) {
	b := h.buffer[:pages*pageSize]
	if err := h.content.read(slot, b); err != nil {
		return 0, err
	}
	first := slot
	defer func() { h.releases = append(h.releases, arrival{first, slot - first}) }()
	settle := func(n uint64) {
		s.settle(slot, n)
		slot += n
		address += n * pageSize
		b = b[n*pageSize:]
	}
	absent := 0 // how often in a row a single page had no mapping
	for take := len(b); len(b) > 0; take = min(take, len(b)) {
		n, err := s.uffd.copyIn(address, b[:take])
		if n > 0 {
			h.filled.Add(int64(n))
			settle(uint64(n) / pageSize)
			take, absent = len(b), 0
			continue
		}
		switch err {
		case unix.EEXIST:
			if waited {
				if err := s.uffd.wake(address, pageSize); err != nil {
					return 0, fmt.Errorf("waking process %d: %w", s.pid, err)
				}
			}
			settle(1)
			absent = 0
		case unix.ENOENT:
			if take > pageSize { // there may be a border between mappings
				take = take / pageSize / 2 * pageSize
				continue
			}
			if !h.meta.get().Verified {
				return resultDone, nil // CRIU has not registered it yet
			}
			// The mapping is looked up before it is known whether mappings are
			// changing: the first answer may be about a mapping under way to
			// where its event will say that it went. A second one that does not
			// say EAGAIN tells that the first was right (mfill_atomic).
			if absent++; absent < 2 {
				continue
			}
			if waited {
				if err := s.uffd.wake(address, pageSize); err != nil {
					return 0, fmt.Errorf("waking process %d: %w", s.pid, err)
				}
			}
			settle(1)
			take, absent = len(b), 0
		case unix.EAGAIN:
			return resultChanges, nil
		case unix.ENOMEM:
			return resultNoMemory, nil
		case unix.ESRCH:
			return resultDead, nil
		default:
			return 0, fmt.Errorf("filling process %d at %#x: %w", s.pid, address, err)
		}
		waited = false
	}
	return resultDone, nil
}

// setFollow has the pages after a fault filled next.
func (s *space) setFollow(address uint64) {
	f := &s.follow
	window := uint64(minFollow)
	if f.window > 0 && address <= f.next && f.next-address <= f.window*pageSize {
		window = min(2*f.window, maxFollow)
	}
	*f = follow{address + pageSize, window, window, address + (window+1)*pageSize}
}
