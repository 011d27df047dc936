package pager

import (
	"errors"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"

	"podd/pagesync"
)

// naive is what a space is to be: a map from pages to slots, and the slots that are
// not lacking.
type naive struct {
	slots map[uint64]uint64
	had   map[uint64]bool
}

func (s *space) naive(low, high uint64) naive {
	n := naive{map[uint64]uint64{}, map[uint64]bool{}}
	for _, e := range s.extents {
		for a := e.start; a < e.end; a += pageSize {
			n.slots[a] = e.at(a)
		}
	}
	for slot := low; slot < high; slot++ {
		if s.has(slot) {
			n.had[slot] = true
		}
	}
	return n
}

// TestSpace compares extents with a map under all that a program can do.
func TestSpace(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	c := newContent(t, 0)
	const base, pages = 1<<30 - 50*pageSize, 100 // across two windows
	if err := c.announce([]pagesync.Region{{PID: 1, Start: base, End: base + 40*pageSize}, {PID: 1, Start: base + 45*pageSize, End: base + pages*pageSize}}, true); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "space-1")
	s, err := newSpace(path, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.setRegions(c); err != nil {
		t.Fatal(err)
	}
	want := naive{map[uint64]uint64{}, map[uint64]bool{}}
	for i := range uint64(pages) {
		if i < 40 || i >= 45 {
			want.slots[base+i*pageSize], _ = c.slot(1, base+i*pageSize)
		}
	}
	for range 3000 {
		start := base + r.Uint64N(4*pages)*pageSize
		n := 1 + r.Uint64N(20)
		end := start + n*pageSize
		switch r.IntN(3) {
		case 0:
			s.drop(start, end)
			for a := start; a < end; a += pageSize {
				if slot, ok := want.slots[a]; ok {
					want.had[slot] = true
				}
			}
		case 1:
			if err := s.unmap(start, end); err != nil || len(s.suspects) > 0 {
				t.Fatalf("%d suspects, though nothing was moved a moment ago: %v", len(s.suspects), err)
			}
			for a := start; a < end; a += pageSize {
				if slot, ok := want.slots[a]; ok {
					want.had[slot] = true
					delete(want.slots, a)
				}
			}
		case 2:
			to := base + r.Uint64N(4*pages)*pageSize
			if to < end && start < to+n*pageSize {
				continue // mremap refuses that
			}
			moving := map[uint64]uint64{}
			for a := start; a < end; a += pageSize {
				if slot, ok := want.slots[a]; ok {
					moving[a-start+to] = slot
					delete(want.slots, a)
				}
			}
			for a, slot := range moving {
				want.slots[a] = slot
			}
			for range 1 + r.IntN(2) { // twice does no harm
				if err := s.remap(start, to, n*pageSize); err != nil {
					t.Fatal(err)
				}
			}
			for i := range s.extents { // as calm does
				s.extents[i].moved = false
			}
			s.vacated = nil
		}
		if r.IntN(100) == 0 {
			if err := s.live(); err != nil {
				t.Fatal(err)
			}
			was := s.extents
			if s, err = openSpace(path, 1); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(s.extents, was) {
				t.Fatal("the extents that are read are not those that were written")
			}
		}
	}
	got := s.naive(0, 2*windowPages)
	if len(got.slots) != len(want.slots) || len(got.had) != len(want.had) {
		t.Errorf("%d pages and %d that are not lacking; want %d and %d", len(got.slots), len(got.had), len(want.slots), len(want.had))
	}
	for a, slot := range want.slots {
		if got.slots[a] != slot {
			t.Errorf("at %#x is slot %d instead of %d", a, got.slots[a], slot)
		}
	}
	for i, e := range s.extents {
		if e.start >= e.end || i > 0 && s.extents[i-1].end > e.start || e.slot/windowPages != (e.slot+e.pages()-1)/windowPages {
			t.Errorf("impossible extents %+v", s.extents)
			break
		}
	}
}

// A range that is said to be unmapped a moment after something was moved there is
// left alone until it is known, if there was something before.
func TestSuspects(t *testing.T) {
	c := newContent(t, 0)
	c.announceOne(t, 10, true)
	s, err := newSpace(filepath.Join(t.TempDir(), "space-1"), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.setRegions(c); err != nil {
		t.Fatal(err)
	}
	has := func(page uint64) bool {
		slot, _ := c.slot(1, at+page*pageSize)
		return s.has(slot)
	}
	const free, taken = at + 100*pageSize, at + 6*pageSize
	if err := errors.Join(s.remap(at+4*pageSize, free, 2*pageSize), s.unmap(free, free+pageSize)); err != nil {
		t.Fatal(err)
	}
	if len(s.suspects) > 0 || !has(4) || has(5) {
		t.Error("what was moved to where nothing was, and unmapped, is waited for")
	}
	if err := errors.Join(s.remap(at, taken, 4*pageSize), s.unmap(taken+pageSize, taken+2*pageSize)); err != nil {
		t.Fatal(err)
	}
	if !s.unsettled || !s.suspect(taken+pageSize) || s.suspect(taken) || has(1) {
		t.Errorf("suspects %+v", s.suspects)
	}
	// Another thread moves there what was at 5 before the kernel tells that 4 and 5 left.
	const left = at + 4*pageSize
	if err := errors.Join(s.remap(free+pageSize, left, pageSize), s.unmap(left, left+2*pageSize)); err != nil {
		t.Fatal(err)
	}
	if !s.suspect(left) || has(5) {
		t.Error("what was moved to where something had left is given up by the event of that")
	}
	s.suspects = nil
	if err := errors.Join(s.remap(left, free+pageSize, pageSize), func() error {
		for i := range s.extents { // as calm does
			s.extents[i].moved = false
		}
		return nil
	}()); err != nil {
		t.Fatal(err)
	}
	if err := s.unmap(free+pageSize, free+2*pageSize); err != nil {
		t.Fatal(err)
	}
	if !has(5) {
		t.Error("what was unmapped where it always was is waited for")
	}
}

func TestInherit(t *testing.T) {
	c := newContent(t, 0)
	c.announceOne(t, 20, true)
	dir := t.TempDir()
	parent, err := newSpace(filepath.Join(dir, "space-1"), 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.setRegions(c); err != nil {
		t.Fatal(err)
	}
	parent.drop(at, at+2*pageSize)
	child, err := newSpace(filepath.Join(dir, "space-2"), 2, 1)
	if err != nil {
		t.Fatal(err)
	}
	child.inherit(parent)
	parent.drop(at+2*pageSize, at+4*pageSize)
	child.drop(at+19*pageSize, at+20*pageSize)
	for i, want := range map[uint64]bool{0: true, 1: true, 2: false, 3: false, 18: false, 19: true} {
		if slot, _ := c.slot(1, at+i*pageSize); child.has(slot) != want {
			t.Errorf("page %d of the child is not lacking: %v", i, !want)
		}
	}
	if slot, _ := c.slot(1, at+19*pageSize); parent.has(slot) {
		t.Error("the child's doing is the parent's")
	}
}
