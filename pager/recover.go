package pager

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// recover takes over from a pager that died. The spaces' userfaultfds are taken
// from its keeper or, where that is dead too and the pod does not run yet, are those
// that podd has kept.
func (h *handler) recover(generation int, keeper process) error {
	spare, err := inherited()
	if err != nil {
		return err
	}
	defer func() {
		for _, fd := range spare {
			unix.Close(fd)
		}
	}()
	names, err := filepath.Glob(filepath.Join(h.dir, "space-*"))
	if err != nil {
		return fmt.Errorf("looking for spaces: %w", err)
	}
	spaces := map[int]*space{}
	for _, name := range names {
		var id int
		if _, err := fmt.Sscanf(filepath.Base(name), "space-%d", &id); err != nil {
			continue
		}
		s, err := openSpace(name, id)
		if err != nil {
			return err
		}
		h.nextID = max(h.nextID, id)
		if s != nil {
			spaces[id] = s
		}
	}
	if len(spaces) == 0 {
		return nil
	}
	pidfd, dead := keeper.open()
	switch {
	case dead == nil:
		defer unix.Close(pidfd)
	case h.meta.get().Running:
		return fmt.Errorf("%w: %w", errLost, dead)
	case len(spare) == 0:
		// podd has ended, too, and with it CRIU and what it had restored. If the pod
		// runs nevertheless, that is found out as podd says so.
		return h.forget(spaces)
	}
	if err := h.obeyJournal(spaces, generation); err != nil {
		return err
	}
	for _, s := range spaces {
		fd, kept := spare[s.pid]
		switch {
		case dead == nil:
			if fd, err = takeDescriptor(pidfd, s.descriptor(generation)); err != nil {
				return fmt.Errorf("%w: %w", errLost, err)
			}
		case !kept || s.child:
			return fmt.Errorf("%w: %w", errLost, dead)
		default:
			delete(spare, s.pid)
		}
		s.uffd = userfault(fd)
		s.setDescriptor(generation+1, fd)
	}
	for _, s := range spaces {
		if err := h.add(s); err != nil {
			return err
		}
		// Faults that were read are not told again, unless who waits is woken.
		if err := s.uffd.wake(lowest, 1<<47-2*lowest); err != nil {
			return fmt.Errorf("waking process %d: %w", s.pid, err)
		}
	}
	h.crowded = slices.Contains(h.meta.get().Frozen, crowdedCause)
	return h.uncrowd()
}

// forget removes spaces whose processes, it is thought, are to be restored once more.
func (h *handler) forget(spaces map[int]*space) error {
	err := h.meta.change(func(m *meta) {
		for _, s := range spaces {
			m.Forgotten = append(m.Forgotten, s.pid)
		}
	})
	if err != nil {
		return err
	}
	h.journal.done()
	for _, s := range spaces {
		err = errors.Join(err, s.remove())
	}
	return err
}

// lowest is an address below which nobody maps anything, and at which the kernel
// lets one (vm.mmap_min_addr).
const lowest = 1 << 16

// errLost means that userfaultfds are gone: what was missing reads as zeros.
var errLost = errors.New("memory of the pod was lost: nobody kept its userfaultfds")

// obeyJournal obeys what the pager that died had read. A child's userfaultfd is
// still the keeper's.
func (h *handler) obeyJournal(spaces map[int]*space, generation int) error {
	id, some := h.journal.left()
	if !some {
		return nil
	}
	s, m := spaces[id], h.journal.message
	switch {
	case s == nil:
	case m.event() == eventRemap:
		if err := s.remap(m.first(), m.second(), m.remapBytes()); err != nil {
			return err
		}
	case m.event() == eventRemove:
		s.drop(m.first(), m.second())
	case m.event() == eventUnmap:
		if err := s.unmap(m.first(), m.second()); err != nil {
			return err
		}
	case m.event() == eventFork:
		if slices.ContainsFunc(slices.Collect(maps.Values(spaces)), func(s *space) bool { return s.descriptor(generation) == m.forked() }) {
			break
		}
		h.nextID++
		child, err := newSpace(h.spacePath(h.nextID), h.nextID, s.pid)
		if err != nil {
			return err
		}
		child.inherit(s)
		child.setDescriptor(generation, m.forked())
		if err := child.live(); err != nil {
			return err
		}
		spaces[child.id] = child
	}
	h.journal.done()
	return nil
}
