//go:build root

package datapath

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"podd/vnet/vnettest"
)

// conversation is a connection to an echo server, in use all the time: it
// keeps some numbers under way and checks every byte that comes back.
type conversation struct {
	*net.TCPConn
	sent, answered atomic.Uint64
	underWay       chan struct{}
	stop           chan struct{}
	result         chan error
}

// window is how many numbers are under way.
const window = 64

func converse(t testing.TB, path, address, greeting string) *conversation {
	t.Helper()
	c := &conversation{
		TCPConn:  vnettest.Dial(t, path, address),
		underWay: make(chan struct{}, window), stop: make(chan struct{}), result: make(chan error, 2),
	}
	vnettest.ExpectGreeting(t, c, greeting)
	go func() { c.result <- c.write() }()
	go func() { c.result <- c.read() }()
	return c
}

func (c *conversation) write() error {
	defer c.CloseWrite()
	var message [8]byte
	for {
		select {
		case <-c.stop:
			return nil
		case c.underWay <- struct{}{}:
		}
		binary.BigEndian.PutUint64(message[:], c.sent.Add(1))
		if _, err := c.Write(message[:]); err != nil {
			return fmt.Errorf("writing: %w", err)
		}
	}
}

func (c *conversation) read() error {
	var message [8]byte
	for {
		if _, err := io.ReadFull(c, message[:]); err != nil {
			if err == io.EOF && c.sent.Load() == c.answered.Load() {
				return nil
			}
			return fmt.Errorf("reading answer %d of %d: %w", c.answered.Load()+1, c.sent.Load(), err)
		}
		if got, want := binary.BigEndian.Uint64(message[:]), c.answered.Add(1); got != want {
			return fmt.Errorf("answer %d came where %d was due", got, want)
		}
		<-c.underWay
	}
}

// progress waits for more answers than there were packets under way.
func (c *conversation) progress(t testing.TB) {
	t.Helper()
	goal := c.answered.Load() + 4*window
	vnettest.Eventually(t, "the conversation goes on", func() bool {
		select {
		case err := <-c.result:
			c.result <- err
			t.Fatalf("the conversation has ended: %v", err)
		default:
		}
		return c.answered.Load() > goal
	})
}

// end stops the conversation and checks that everything was answered.
func (c *conversation) end(t testing.TB) {
	t.Helper()
	close(c.stop)
	for range 2 {
		if err := <-c.result; err != nil {
			t.Error(err)
		}
	}
	c.Close()
}
