package daemon

import (
	"bufio"
	"crypto/tls"
	"errors"
	"net"
	"sync"
)

// bulkSize is how much of a bulk connection goes into one system call, in
// bytes: 256 KiB and what 16 records of TLS add to it. TLS alone makes one or
// two calls for each record of 16 KiB, which costs as much as the encryption.
const bulkSize = 264 << 10

// bulkConn is a TLS connection that is good at carrying much.
type bulkConn struct {
	*tls.Conn
	inner *peerConn
}

// Bulk makes a connection of Peers.Dial, or one that a handler of Guard.Serve has
// taken over, good at carrying much. Nobody may be using it meanwhile. Another
// kind of connection is returned as it is.
func Bulk(conn net.Conn) net.Conn {
	secure, ok := conn.(*tls.Conn)
	if !ok {
		return conn
	}
	inner := findPeerConn(conn)
	if inner == nil {
		return conn
	}
	inner.bulk = &bulkBuffers{reader: bufio.NewReaderSize(inner.Conn, bulkSize), writer: bufio.NewWriterSize(inner.Conn, bulkSize)}
	return &bulkConn{Conn: secure, inner: inner}
}

// Write implements net.Conn: all records of p go out together.
func (c *bulkConn) Write(p []byte) (int, error) {
	c.inner.bulk.cork()
	n, err := c.Conn.Write(p)
	return n, errors.Join(err, c.inner.bulk.uncork())
}

// bulkBuffers are between TLS and the socket.
type bulkBuffers struct {
	reader *bufio.Reader

	mu     sync.Mutex
	corked bool // what is written waits in writer
	writer *bufio.Writer
}

func (b *bulkBuffers) cork() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.corked = true
}

func (b *bulkBuffers) uncork() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.corked = false
	return b.writer.Flush()
}

// write is called by TLS, also for what is not a bulkConn's: its alerts.
func (b *bulkBuffers) write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, err := b.writer.Write(p)
	if err == nil && !b.corked {
		err = b.writer.Flush()
	}
	return n, err
}
