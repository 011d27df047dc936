package pager

import (
	"net"
	"sync"
	"sync/atomic"
	"time"

	"podd/pagesync"
)

// sender says what the pager has to say on one connection.
type sender struct {
	link  *link
	conn  net.Conn
	w     *pagesync.Writer
	acks  chan uint64
	ended chan struct{}
	again bool        // the source sends only what it is asked for
	done  atomic.Bool // the source says that it has sent everything

	// What was asked for without a fault, and where to go on.
	cursor      uint64
	region      int
	outstanding []arrival
	acked       bool // Done

	watching sync.Mutex // guards the next one
	waiting  bool       // a fault waits, and the source has a deadline
}

func (s *sender) hello() error {
	f := pagesync.Frame{Kind: pagesync.KindHello}
	if s.again {
		f.Flags = pagesync.FlagAgain
	}
	if err := s.w.Write(f); err != nil {
		return err
	}
	return s.w.Flush()
}

func (s *sender) poke() { s.link.want() }

// ack has a mark answered. The source waits for the answer, so there are few.
func (s *sender) ack(number uint64) {
	select {
	case s.acks <- number:
	case <-s.ended:
	}
}

// run sends until the connection ends.
func (s *sender) run() error {
	for {
		select {
		case <-s.ended:
			return nil
		case number := <-s.acks:
			if err := s.w.Write(pagesync.Frame{Kind: pagesync.KindAck, Number: number}); err != nil {
				return err
			}
		case <-s.link.wake:
			if err := s.watch(false); err != nil {
				return err
			}
			if err := s.ask(); err != nil {
				return err
			}
		}
		if err := s.w.Flush(); err != nil {
			return err
		}
	}
}

// watch gives the source silenceLimit to say something of the memory while a
// fault waits for it: a podd that hangs is not noticed by the connection, which
// its kernel keeps alive. heard says that it has just said something.
func (s *sender) watch(heard bool) error {
	s.watching.Lock()
	defer s.watching.Unlock()
	waited := s.waiting
	s.waiting = s.link.content.faultsWait()
	if s.waiting == waited && !(heard && waited) {
		return nil
	}
	var deadline time.Time
	if s.waiting {
		deadline = time.Now().Add(silenceLimit)
	}
	return s.conn.SetReadDeadline(deadline)
}

// ask asks for what faults wait for, and for the rest where it does not come by
// itself.
func (s *sender) ask() error {
	c := s.link.content
	if !c.isFinal() {
		return nil
	}
	for _, slot := range c.unasked() {
		if err := s.want(arrival{slot, c.unsaidRun(slot, faultPages)}, pagesync.FlagFault); err != nil {
			return err
		}
	}
	if s.link.enough() {
		if s.acked {
			return nil
		}
		if err := s.w.Write(pagesync.Frame{Kind: pagesync.KindAck, Number: pagesync.Done}); err != nil {
			return err
		}
		if err := s.w.Flush(); err != nil {
			return err
		}
		s.acked = true
		s.link.setAcked()
		return nil
	}
	if !s.again && !s.done.Load() {
		return nil
	}
	for len(s.outstanding) > 0 && c.unsaidIn(s.outstanding[0]) == 0 {
		s.outstanding = s.outstanding[1:]
	}
	for len(s.outstanding) < wantsAtOnce {
		var next arrival
		if next, s.region, s.cursor = c.nextUnsaid(s.region, s.cursor, wantPages); next.pages == 0 {
			break
		}
		s.outstanding = append(s.outstanding, next)
		if err := s.want(next, 0); err != nil {
			return err
		}
	}
	return nil
}

func (s *sender) want(a arrival, flags uint8) error {
	if a.pages == 0 {
		return nil
	}
	pid, address := s.link.content.pageOf(a.slot)
	return s.w.Write(pagesync.Frame{Kind: pagesync.KindWant, Flags: flags, PID: pid, Address: address, Pages: int(a.pages)})
}
