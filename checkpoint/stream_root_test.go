//go:build root

package checkpoint

import (
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// stream sends numbered bytes to the pod's echo port and checks what comes back, both at
// full speed, until stopped.
type stream struct {
	conn    net.Conn
	stopped atomic.Bool
	checked atomic.Int64
	sent    atomic.Int64
	longest atomic.Int64 // nanoseconds without a byte
	errs    chan error
}

func (w *world) stream(t *testing.T) *stream {
	s := &stream{conn: w.dial(t, 7), errs: make(chan error, 2)}
	go s.send()
	go s.check()
	s.progress(t) // a connection that the pod has not accepted can't be dumped
	return s
}

func pattern(i int64) byte { return byte(i ^ i>>8 ^ i>>16) }

func (s *stream) send() {
	b := make([]byte, 8<<10)
	for !s.stopped.Load() {
		n := s.sent.Load()
		for i := range b {
			b[i] = pattern(n + int64(i))
		}
		if _, err := s.conn.Write(b); err != nil {
			s.errs <- err
			return
		}
		s.sent.Add(int64(len(b)))
	}
	s.errs <- s.conn.(*net.TCPConn).CloseWrite()
}

func (s *stream) check() {
	b := make([]byte, 64<<10)
	last := time.Now()
	for i := int64(0); ; {
		n, err := s.conn.Read(b)
		s.longest.Store(max(s.longest.Load(), int64(time.Since(last))))
		last = time.Now()
		for _, c := range b[:n] {
			if c != pattern(i) {
				s.errs <- fmt.Errorf("byte %d is %#x, not %#x", i, c, pattern(i))
				return
			}
			i++
		}
		s.checked.Store(i)
		if err != nil {
			if s.stopped.Load() && i == s.sent.Load() {
				err = nil // all came back, then the end
			}
			s.errs <- err
			return
		}
	}
}

// progress waits until bytes sent from now on came back.
func (s *stream) progress(t *testing.T) {
	t.Helper()
	start := s.sent.Load()
	eventually(t, "bytes come back", func() bool {
		select {
		case err := <-s.errs:
			t.Fatalf("the connection broke: %v", err)
		default:
		}
		return s.checked.Load() > start
	})
}

// finish ends the stream and checks that every byte came back.
func (s *stream) finish(t *testing.T) {
	t.Helper()
	s.progress(t)
	s.stopped.Store(true)
	must(t, s.conn.SetDeadline(time.Now().Add(waitLimit)))
	for range 2 {
		if err := <-s.errs; err != nil {
			t.Fatalf("the connection broke: %v", err)
		}
	}
	t.Logf("%d bytes right, longest silence %v", s.checked.Load(), time.Duration(s.longest.Load()).Round(100*time.Microsecond))
}
