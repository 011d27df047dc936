package pager

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"podd/pagesync"
)

// errNotYet means that something is to be waited for.
var errNotYet = errors.New("not yet")

func (s *server) verify(complete bool, deadline time.Time) error {
	for {
		err := s.failure()
		if err == nil {
			err = s.h.do(func() error { return s.h.verify(complete) })
		}
		if !errors.Is(err, errNotYet) {
			return err
		}
		if time.Now().After(deadline) {
			return err
		}
		time.Sleep(verifyPoll)
	}
}

// verify reports whether the pod can be run: everything that it lacks is known to
// be filled when it is touched.
func (h *handler) verify(complete bool) error {
	c := h.content
	if !c.isFinal() {
		return fmt.Errorf("%w: the source has not said what the pod's memory is", errNotYet)
	}
	if missing := c.missing(); complete && missing > 0 {
		return fmt.Errorf("%w: %d MiB of the pod's memory are missing", errNotYet, missing*pageSize>>20)
	}
	attached := map[int]*space{}
	for _, s := range h.spaces {
		attached[s.pid] = s
	}
	for _, r := range c.finalRegions() {
		s := attached[r.PID]
		if s == nil {
			return fmt.Errorf("process %d has memory to be filled, but was not restored so", r.PID)
		}
		if err := s.verify(r); err != nil {
			return err
		}
	}
	if h.meta.get().Verified {
		return nil
	}
	h.prefillUntil = time.Now().Add(prefillTime)
	return h.meta.change(func(m *meta) { m.Verified = true })
}

// begin takes note that the pod runs. A process that was forgotten must have been
// attached again: it has zeros otherwise.
func (h *handler) begin() error {
	m := h.meta.get()
	if !m.Running && len(m.Forgotten) > 0 {
		return errors.Join(errLost, giveUp(h.meta, h.freezer, errLost))
	}
	h.restUntil = time.Now().Add(restTime)
	return h.meta.change(func(m *meta) { m.Running = true })
}

// verify makes sure that a region is registered, all of it.
func (s *space) verify(r pagesync.Region) error {
	ok, err := s.uffd.probe(r.Start, r.End-r.Start)
	if err == unix.EAGAIN {
		return fmt.Errorf("%w: process %d changes its mappings", errNotYet, s.pid)
	}
	if err != nil {
		return fmt.Errorf("looking at %v: %w", r, err)
	}
	if ok {
		return nil
	}
	if r.Pages() == 1 {
		return fmt.Errorf("%v can't be filled: it was not restored, or is locked in memory", r)
	}
	// It may be several mappings.
	middle := r.Start + uint64(r.Pages()/2)*pageSize
	if err := s.verify(pagesync.Region{PID: r.PID, Start: r.Start, End: middle}); err != nil {
		return err
	}
	return s.verify(pagesync.Region{PID: r.PID, Start: middle, End: r.End})
}

func (c *content) finalRegions() []pagesync.Region {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.regions)
}
