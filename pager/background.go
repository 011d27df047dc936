package pager

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// step does a little that nobody waits for; it reports whether there is more.
func (h *handler) step() (bool, error) {
	if len(h.spaces) == 0 {
		return false, nil
	}
	m := h.meta.get()
	if !m.Verified {
		return false, nil
	}
	for _, id := range h.order {
		if s := h.spaces[id]; s.follow.pages > 0 && !s.waits() {
			return true, h.stepFollow(s)
		}
	}
	if !m.Running && time.Now().After(h.prefillUntil) {
		return false, nil
	}
	h.setNice(backgroundNice)
	if len(h.queue) > 0 {
		return h.stepQueue()
	}
	if !m.Running {
		return false, nil
	}
	if time.Now().Before(h.restUntil) {
		return false, nil
	}
	if len(h.releases) > 64 {
		return true, h.release()
	}
	for range h.order {
		h.turn %= len(h.order)
		if s := h.spaces[h.order[h.turn]]; !s.clean && !s.waits() {
			return true, h.stepScan(s)
		}
		h.turn++
	}
	if len(h.releases) > 0 {
		return true, h.release()
	}
	return false, nil
}

// waits reports whether a space's memory cgroup is to have a pause, or its events
// are to be read first.
func (s *space) waits() bool { return s.retryAt > now() || len(s.later) > 0 || s.unsettled }

// stepFollow fills pages after a fault.
func (h *handler) stepFollow(s *space) error {
	f := &s.follow
	i, found := s.find(f.address)
	if !found {
		f.pages = 0
		return nil
	}
	e := s.extents[i]
	n := min(f.pages, minChunk, (e.end-f.address)/pageSize)
	address := f.address
	f.address += n * pageSize
	f.pages -= n
	if e.end == f.address {
		f.pages = 0
	}
	return h.giveRange(s, address, e.at(address), n)
}

// giveRange fills those of a range of pages that are here and lacking.
func (h *handler) giveRange(s *space, address, slot, pages uint64) error {
	for end := slot + pages; slot < end; {
		if s.has(slot) {
			slot++
			address += pageSize
			continue
		}
		state, n := h.content.run(slot, min(end-slot, maxChunk))
		for i := uint64(1); i < n; i++ {
			if s.has(slot + i) {
				n = i
			}
		}
		if state == stateData {
			r, err := h.give(s, address, slot, n, false)
			if err != nil || r == resultDead {
				return h.orEnd(s, err)
			}
			if r != resultDone {
				// It is not forgotten: the scan comes by again.
				s.clean, s.rescan = false, true
				if r == resultNoMemory {
					s.retryAt = now() + int64(retryPause)
				}
				return nil
			}
		}
		slot += n
		address += n * pageSize
	}
	return nil
}

// stepQueue fills what arrived first after the freeze, in all spaces that lack it.
func (h *handler) stepQueue() (bool, error) {
	a := &h.queue[0]
	n := min(a.pages, h.chunk)
	pid, address := h.content.pageOf(a.slot)
	for _, id := range slices.Clone(h.order) {
		s := h.spaces[id]
		if s == nil || s.pid != pid {
			continue
		}
		// Where it was moved from the scan finds it.
		i, found := s.find(address)
		if !found || s.extents[i].at(address) != a.slot {
			continue
		}
		here := min(n, (s.extents[i].end-address)/pageSize)
		if err := h.giveRange(s, address, a.slot, here); err != nil {
			return false, err
		}
		if here < n {
			s.clean, s.rescan = false, true
		}
	}
	a.slot += n
	if a.pages -= n; a.pages == 0 {
		h.queue = h.queue[1:]
	}
	h.grow()
	return true, nil
}

// grow copies more at once while there are no faults.
func (h *handler) grow() { h.chunk = min(2*h.chunk, maxChunk) }

// stepScan goes on through a space from where it was.
func (h *handler) stepScan(s *space) error {
	for looked := uint64(0); looked < scanPages; {
		i, _ := s.find(s.cursor)
		if i == len(s.extents) {
			return h.scanned(s)
		}
		e := s.extents[i]
		s.cursor = max(s.cursor, e.start)
		slot, left := e.at(s.cursor), (e.end-s.cursor)/pageSize
		if n := s.skip(slot, left); n > 0 {
			s.cursor += n * pageSize
			looked += n / 64
			continue
		}
		state, n := h.content.run(slot, min(left, scanPages))
		looked += n
		if state != stateData {
			s.missing = s.missing || state == stateUnsaid
			s.cursor += n * pageSize
			continue
		}
		n = min(n, h.chunk)
		address := s.cursor
		s.cursor += n * pageSize
		h.grow()
		return h.giveRange(s, address, slot, n)
	}
	return nil
}

// skip counts how many pages from a slot on the space does not lack.
func (s *space) skip(slot, limit uint64) (n uint64) {
	for n < limit && s.has(slot+n) {
		if (slot+n)%64 == 0 && s.had[(slot+n)/64] == ^uint64(0) {
			n += 64
		} else {
			n++
		}
	}
	return min(n, limit)
}

// scanned decides what is next for a space all of which was looked at.
func (h *handler) scanned(s *space) error {
	again := s.rescan || s.missing && h.content.missing() == 0
	missing := s.missing
	s.cursor, s.rescan, s.missing = 0, false, false
	switch {
	case again:
		return nil
	case missing:
		s.clean = true // until more arrives
		return nil
	}
	return h.end(s)
}

// arrived looks at what came from the source.
func (h *handler) arrived() error {
	var b [8]byte
	unix.Read(h.wakeup, b[:]) // EAGAIN: somebody was faster
	if !h.content.isFinal() {
		return nil
	}
	queue, overflow, all := h.content.takeArrivals()
	if len(h.queue)+len(queue) > maxArrivals {
		queue, overflow = nil, true
	}
	h.queue = append(h.queue, queue...)
	for _, id := range slices.Clone(h.order) {
		s := h.spaces[id]
		if s == nil {
			continue
		}
		if !s.placed {
			if err := errors.Join(s.setRegions(h.content), s.save()); err != nil {
				return err
			}
		}
		if overflow || all {
			s.rescan, s.clean = true, false
		}
		for address, since := range s.waiting {
			if i, found := s.find(address); found {
				if state, _ := h.content.run(s.extents[i].at(address), 1); state == stateUnsaid {
					continue
				}
			}
			delete(s.waiting, address)
			if err := h.fault(s, late{address, since}); err != nil {
				return err
			}
			if h.spaces[id] != s {
				break
			}
		}
	}
	return nil
}

// release frees what the store has of pages that nobody lacks any more.
func (h *handler) release() error {
	releases := h.releases
	h.releases = nil
	slices.SortFunc(releases, func(a, b arrival) int { return cmp.Compare(a.slot, b.slot) })
	var run arrival
	for _, r := range releases {
		if run.slot+run.pages == r.slot && r.slot%windowPages != 0 {
			run.pages += r.pages
			continue
		}
		if err := h.releaseRun(run); err != nil {
			return err
		}
		run = r
	}
	return h.releaseRun(run)
}

func (h *handler) releaseRun(run arrival) error {
	if run.pages == 0 {
		return nil
	}
	pid, _ := h.content.pageOf(run.slot)
	for _, s := range h.spaces {
		if s.pid == pid && s.skip(run.slot, run.pages) < run.pages {
			return nil // who lacks it says so when it does not any more
		}
	}
	return h.content.release(run.slot, run.pages)
}
