package pagesync

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"podd/netconn"
)

// silenceLimit is how long a connection may take nothing, or answer nothing,
// before it is lost: the pager then makes a new one.
const silenceLimit = 10 * time.Second

// unsentBytes is how much a connection takes from us beyond what it has sent
// (TCP_NOTSENT_LOWAT, tcp(7)): the answer to a fault waits behind no more.
const unsentBytes = 256 << 10

// link is one connection of the pager. Frames are written by whoever has its
// turn; answers to wants come before the rest.
type link struct {
	conn net.Conn
	r    *Reader
	gone chan struct{} // closed once the connection is

	mu     sync.Mutex
	turn   sync.Cond
	taken  bool
	urgent int // that wait for their turn
	err    error

	w     *Writer // of who has the turn
	meter *meter
}

func newLink(conn net.Conn) *link {
	m := &meter{w: conn}
	l := &link{conn: conn, r: NewReader(conn), gone: make(chan struct{}), w: NewWriter(m), meter: m}
	l.turn.L = &l.mu
	// Without these faults and losses are noticed later, no more.
	_ = netconn.LimitSilence(conn, silenceLimit)
	_ = netconn.SetTCPOption(conn, unix.TCP_NOTSENT_LOWAT, unsentBytes)
	return l
}

// errLink marks failures of the connection.
var errLink = errors.New("connection of the pager")

// fail ends the connection; the first reason stays.
func (l *link) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return
	}
	l.err = fmt.Errorf("%w: %w", errLink, err)
	l.conn.Close()
	close(l.gone)
}

// cause returns why the connection ended.
func (l *link) cause() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

// send writes frames; with flush they leave at once, and what was written
// before. urgent is for what a fault may wait for.
func (l *link) send(urgent, flush bool, frames ...Frame) error {
	l.mu.Lock()
	if urgent {
		l.urgent++
	}
	for l.taken || !urgent && l.urgent > 0 {
		l.turn.Wait()
	}
	if urgent {
		l.urgent--
	}
	if l.err != nil {
		l.turn.Broadcast()
		l.mu.Unlock()
		return l.err
	}
	l.taken = true
	l.mu.Unlock()

	var err error
	for _, f := range frames {
		if err = l.w.Write(f); err != nil {
			break
		}
	}
	if err == nil && flush {
		err = l.w.Flush()
	}
	if err != nil {
		l.fail(err)
	}
	l.mu.Lock()
	l.taken = false
	if err != nil {
		err = l.err
	}
	l.turn.Broadcast()
	l.mu.Unlock()
	return err
}

// sent returns the bytes of all frames written.
func (l *link) sent() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.taken {
		l.turn.Wait()
	}
	return l.w.Bytes()
}
