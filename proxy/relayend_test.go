package proxy

import (
	"context"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"

	"podd/directory"
)

// closing is a layer of a connection that knows whether it was closed.
type closing struct {
	net.Conn
	closed atomic.Bool
}

// NetConn is the connection below, as for tls.Conn.
func (c *closing) NetConn() net.Conn { return c.Conn }

// Close implements net.Conn.
func (c *closing) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

// Whichever host ends a relay, or the daemon: every layer of both connections is
// closed in the end, so nothing keeps their buffers.
func TestRelayClosesEveryLayer(t *testing.T) {
	for name, end := range map[string]func(from, to net.Conn, stop func()){
		"source": func(from, to net.Conn, stop func()) { from.Close() },
		"target": func(from, to net.Conn, stop func()) { to.Close() },
		"daemon": func(from, to net.Conn, stop func()) { stop() },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			s := &relays{ctx: ctx, metrics: newMetrics(), log: slog.New(slog.DiscardHandler)}
			a, from := net.Pipe()
			b, to := net.Pipe()
			first, second := &closing{Conn: from}, &closing{Conn: to}
			carried := make(chan struct{})
			go func() {
				s.carry(&relay{Relay: directory.Relay{From: "a", To: "b", Move: "m"}}, first, second)
				close(carried)
			}()
			end(a, b, stop)
			<-carried
			if !first.closed.Load() || !second.closed.Load() {
				t.Errorf("layers closed: the source's %t, the target's %t; want both", first.closed.Load(), second.closed.Load())
			}
		})
	}
}
