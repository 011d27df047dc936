//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"podd/lab"
)

// replyTimeout bounds the wait for one reply, over a move too.
const replyTimeout = 90 * time.Second

// lineConn is one connection from the client to a server of lines, that lives
// as long as its test.
type lineConn struct {
	t      *testing.T
	conn   net.Conn
	reader *bufio.Reader
}

func dialLines(t *testing.T, address string) *lineConn {
	t.Helper()
	conn, err := theLab.Dial(bounded(t), lab.Client, "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &lineConn{t: t, conn: conn, reader: bufio.NewReader(conn)}
}

// roundTrip sends a line and returns the line that comes back.
func (c *lineConn) roundTrip(line string) (string, error) {
	if err := c.conn.SetDeadline(time.Now().Add(replyTimeout)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintf(c.conn, "%s\n", line); err != nil {
		return "", err
	}
	reply, err := c.reader.ReadString('\n')
	return strings.TrimSuffix(reply, "\n"), err
}

// ask is roundTrip that has to succeed.
func (c *lineConn) ask(line string) string {
	c.t.Helper()
	reply, err := c.roundTrip(line)
	if err != nil {
		c.t.Fatalf("asking %s %q: %v", c.conn.RemoteAddr(), line, err)
	}
	return reply
}

// background is work that goes on while a test moves pods.
type background struct {
	t      *testing.T
	cancel context.CancelFunc
	done   sync.WaitGroup
	err    error
	rounds atomic.Int64
	// longest is the longest round.
	longest time.Duration
}

// keepDoing calls round, one after the other, until stop.
func keepDoing(t *testing.T, round func(n int) error) *background {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	b := &background{t: t, cancel: cancel}
	b.done.Go(func() {
		for n := 1; ctx.Err() == nil; n++ {
			begin := time.Now()
			if b.err = round(n); b.err != nil {
				b.err = fmt.Errorf("round %d: %w", n, b.err)
				return
			}
			b.longest = max(b.longest, time.Since(begin))
			b.rounds.Store(int64(n))
		}
	})
	t.Cleanup(func() { cancel(); b.done.Wait() })
	return b
}

// stop ends the work after the round under way; none may have failed.
func (b *background) stop() {
	b.t.Helper()
	b.cancel()
	b.done.Wait()
	if b.err != nil {
		b.t.Error(b.err)
	}
	b.t.Logf("%d rounds, the longest %v", b.rounds.Load(), b.longest.Round(time.Millisecond))
}

// keepAsking sends numbered lines on one connection and checks each reply.
func keepAsking(t *testing.T, address string, want func(n int, line string) string) *background {
	t.Helper()
	conn := dialLines(t, address)
	return keepDoing(t, func(n int) error {
		line := fmt.Sprintf("line %d", n)
		reply, err := conn.roundTrip(line)
		if err == nil && reply != want(n, line) {
			err = fmt.Errorf("reply %q; want %q", reply, want(n, line))
		}
		return err
	})
}

// awaitRounds waits until the work has gone through n more rounds.
func (b *background) awaitRounds(n int64) {
	b.t.Helper()
	target := b.rounds.Load() + n
	until(b.t, "the work in the background goes on", func() error {
		if now := b.rounds.Load(); now < target {
			return fmt.Errorf("%d of %d rounds", now, target)
		}
		return nil
	})
}
