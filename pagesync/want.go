package pagesync

import (
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// maxWants is how many wants may wait for their answer; then no more are read.
const maxWants = 1 << 16

// wants are what the pager has asked for and not been given yet.
type wants struct {
	mu     sync.Mutex
	more   sync.Cond
	room   sync.Cond
	faults []Region // somebody waits for them
	rest   []Region
}

func (w *wants) init() {
	w.more.L, w.room.L = &w.mu, &w.mu
}

// add returns false once gone is closed.
func (w *wants) add(r Region, fault bool, gone <-chan struct{}) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.faults)+len(w.rest) >= maxWants && !isClosed(gone) {
		w.room.Wait()
	}
	if isClosed(gone) {
		return false
	}
	if fault {
		w.faults = append(w.faults, r)
	} else {
		w.rest = append(w.rest, r)
	}
	w.more.Broadcast()
	return true
}

// next waits for a want and takes at most one chunk of it, faults first. ok is
// false once gone is closed.
func (w *wants) next(gone <-chan struct{}) (r Region, fault, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for len(w.faults)+len(w.rest) == 0 && !isClosed(gone) {
		w.more.Wait()
	}
	if isClosed(gone) {
		return r, false, false
	}
	queue := &w.faults
	if fault = len(w.faults) > 0; !fault {
		queue = &w.rest
	}
	first := &(*queue)[0]
	r = *first
	r.End = min(r.End, r.Start&^(chunkSize-1)+chunkSize)
	if first.Start = r.End; first.Start == first.End {
		*queue = (*queue)[1:]
		w.room.Broadcast()
	}
	return r, fault, true
}

// reset forgets all wants: a new connection asks again.
func (w *wants) reset() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults, w.rest = nil, nil
	w.room.Broadcast()
}

func (w *wants) wake() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.more.Broadcast()
	w.room.Broadcast()
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// answer gives the pager what it wants, until the connection ends.
func (s *Source) answer(l *link) error {
	c := newCopier()
	scanners := make(map[int]*scanner)
	for {
		r, fault, ok := s.wants.next(l.gone)
		if !ok {
			return nil
		}
		frames, err := s.look(c, scanners, r)
		if err != nil {
			// The target must not run on with anything else in its place.
			s.log.Error("memory that the target wants can't be read", "region", r.String(), "error", err)
			return err
		}
		if err := l.send(fault, true, frames...); err != nil {
			return err
		}
	}
}

// look says what the pages of r, which lie in one chunk, hold. The payloads are
// valid until the next call.
func (s *Source) look(c *copier, scanners map[int]*scanner, r Region) ([]Frame, error) {
	p := s.frozenProcess(r.PID)
	if p == nil {
		return nil, fmt.Errorf("the pod has no process %d: %w", r.PID, unix.ESRCH)
	}
	sc := scanners[r.PID]
	if sc == nil {
		var err error
		if sc, err = p.frozenScanner(); err != nil {
			return nil, err
		}
		scanners[r.PID] = sc
	}
	address := r.Start &^ (chunkSize - 1)
	asked := maskOf(address, span{r.Start, r.End})
	var present uint64
	err := sc.each(span{r.Start, r.End}, func(found span) { present |= maskOf(address, found) })
	if err == nil {
		err = p.hasMemory()
	}
	if err != nil {
		return nil, fmt.Errorf("looking for pages of process %d: %w", p.pid, err)
	}
	b := batch{pid: p.inPod, address: address}
	if present != 0 {
		content, err := c.readAll(p, address, present)
		if err != nil {
			return nil, err
		}
		b.add(content, present, func(_ int, page []byte) Kind {
			if isZero(page) {
				return KindZero
			}
			return KindData
		})
	}
	for first, n := range Runs(asked &^ present) {
		b.frame(KindAbsent, first, n, nil)
	}
	return b.frames, nil
}

// frozenProcess finds a process by its pid in the pod.
func (s *Source) frozenProcess(inPod int) *process {
	for _, p := range s.processes {
		if p.inPod == inPod {
			return p
		}
	}
	return nil
}
