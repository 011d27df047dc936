package daemon

import (
	"net"
	"sync/atomic"

	"podd/netconn"
)

// peerConn is a connection below TLS that leaves Revocations when it is closed,
// by whomever.
type peerConn struct {
	net.Conn
	revocations *Revocations
	noted       atomic.Bool  // by Revocations.note
	closed      bool         // guarded by Revocations.mu
	bulk        *bulkBuffers // nil for most
}

// NetConn is the connection itself, as for tls.Conn.
func (c *peerConn) NetConn() net.Conn { return c.Conn }

// Read implements net.Conn.
func (c *peerConn) Read(p []byte) (int, error) {
	if c.bulk != nil {
		return c.bulk.reader.Read(p)
	}
	return c.Conn.Read(p)
}

// Write implements net.Conn.
func (c *peerConn) Write(p []byte) (int, error) {
	if c.bulk != nil {
		return c.bulk.write(p)
	}
	return c.Conn.Write(p)
}

// Close implements net.Conn.
func (c *peerConn) Close() error {
	c.revocations.mu.Lock()
	c.closed = true
	delete(c.revocations.conns, c)
	c.revocations.mu.Unlock()
	return c.Conn.Close()
}

// peerListener makes the connections it accepts known to Revocations.
type peerListener struct {
	net.Listener
	revocations *Revocations
}

// Accept implements net.Listener.
func (l peerListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.revocations.wrap(conn), nil
}

func findPeerConn(conn net.Conn) *peerConn {
	for layer := range netconn.Layers(conn) {
		if c, ok := layer.(*peerConn); ok {
			return c
		}
	}
	return nil
}
