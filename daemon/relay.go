package daemon

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/url"
	"time"

	"podd/netconn"
	"podd/pod"
	"podd/trust"
)

// Two hosts that can't reach each other meet at the proxy. Both ask it to be
// connected, by an HTTP/1.1 upgrade (RFC 9110, section 7.8) at RelayPath that
// names a request in the directory (directory.Relay). It answers both when the
// second one has come, and then copies bytes both ways until either side ends.
const (
	RelayPath     = "/podd-relay"
	RelayProtocol = "podd-relay"
	// RelayQuery is the parameter of RelayPath with the request's ID.
	RelayQuery = "id"
	// relayReader is the size of the buffer for what comes with the proxy's answer, in
	// bytes: small, so that reads of much go past it.
	relayReader = 1 << 10
)

// RelayWait is how long the proxy lets the first of two hosts wait for the
// second.
const RelayWait = 10 * time.Second

// JoinRelay asks a proxy for the other end of a relay and waits until the other
// host is there, RelayWait at most. What comes out has no TLS with that host yet.
// The error wraps pod.ErrUnavailable.
func (p *Peers) JoinRelay(ctx context.Context, proxy, id string) (net.Conn, error) {
	conn, err := p.Dial(ctx, trust.KindProxy, proxy, "http/1.1")
	if err != nil {
		return nil, err
	}
	relayed, err := askRelay(ctx, conn, proxy, id)
	if err != nil {
		conn.Close() // the error that counts is the first
		return nil, fmt.Errorf("%w: asking proxy %s for a relay: %w", pod.ErrUnavailable, proxy, err)
	}
	return relayed, nil
}

func askRelay(ctx context.Context, conn net.Conn, proxy, id string) (net.Conn, error) {
	socket := netconn.Unwrap(conn)
	stop := context.AfterFunc(ctx, func() { socket.Close() })
	defer stop()
	conn = Bulk(conn)
	// What the other host has said already may come with the answer.
	reader := bufio.NewReaderSize(conn, relayReader)
	target := PeerURL(trust.KindProxy, proxy) + RelayPath + "?" + url.Values{RelayQuery: {id}}.Encode()
	if err := netconn.AskUpgrade(conn, reader, target, RelayProtocol, time.Now().Add(RelayWait+dialTimeout)); err != nil {
		return nil, err
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	return &relayedConn{Conn: conn, proxy: proxy, reader: reader}, nil
}

// relayedConn is a host's end of a relay.
type relayedConn struct {
	net.Conn
	proxy  string
	reader *bufio.Reader
}

// NetConn is the connection to the proxy, as for tls.Conn.
func (c *relayedConn) NetConn() net.Conn { return c.Conn }

// Read implements net.Conn.
func (c *relayedConn) Read(p []byte) (int, error) {
	n, err := c.reader.Read(p)
	return n, c.explain(err)
}

// Write implements net.Conn.
func (c *relayedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.explain(err)
}

// explain says where a connection was lost.
func (c *relayedConn) explain(err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	// TLS and net/http ask, without unwrapping it, whether an error is one of
	// these.
	if network, ok := err.(networkError); ok {
		return &relayError{network, c.proxy}
	}
	return fmt.Errorf("through proxy %s: %w", c.proxy, err)
}

type networkError interface{ net.Error }

// relayError is what became of the connection to the proxy.
type relayError struct {
	networkError
	proxy string
}

func (e *relayError) Error() string {
	return "through proxy " + e.proxy + ": " + e.networkError.Error()
}
func (e *relayError) Unwrap() error { return e.networkError }

// HandedListener is a listener for connections that come about in another way
// than by accepting them.
type HandedListener struct {
	at    net.Addr
	conns chan net.Conn
	ended context.Context
	end   context.CancelFunc
}

// NewHandedListener makes a listener that says it is at an address.
func NewHandedListener(at net.Addr) *HandedListener {
	ended, end := context.WithCancel(context.Background())
	return &HandedListener{at: at, conns: make(chan net.Conn), ended: ended, end: end}
}

// Hand gives the server of the listener a connection. One that is not taken,
// because the listener is closed, is closed.
func (l *HandedListener) Hand(conn net.Conn) {
	select {
	case l.conns <- conn:
	case <-l.ended.Done():
		conn.Close() // nobody has used it
	}
}

// Accept implements net.Listener.
func (l *HandedListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.ended.Done():
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *HandedListener) Close() error {
	l.end()
	return nil
}

// Addr implements net.Listener.
func (l *HandedListener) Addr() net.Addr { return l.at }
