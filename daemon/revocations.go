package daemon

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"sync"

	"podd/directory"
	"podd/pod"
	"podd/trust"
)

// Revocations knows which certificates were taken back, and ends the
// connections to their holders: a handshake is checked by the trust store, but
// a connection may outlive its certificate.
type Revocations struct {
	log *slog.Logger

	mu      sync.Mutex
	revoked map[string]bool
	conns   map[*peerConn]string // to the serial number at the other end
}

// NewRevocations knows of none yet.
func NewRevocations(log *slog.Logger) *Revocations {
	return &Revocations{log: log, revoked: map[string]bool{}, conns: map[*peerConn]string{}}
}

// Revoked reports whether the certificate with this serial number was taken
// back.
func (r *Revocations) Revoked(serial string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.revoked[serial]
}

// Set says which certificates are revoked, by serial number, and closes the
// connections to their holders.
func (r *Revocations) Set(revoked map[string]bool) {
	r.mu.Lock()
	r.revoked = revoked
	var bad []*peerConn
	for conn, serial := range r.conns {
		if revoked[serial] {
			bad = append(bad, conn)
		}
	}
	r.mu.Unlock()
	for _, conn := range bad {
		r.log.Info("the certificate at the other end of a connection was revoked; closing it", "address", conn.RemoteAddr())
		conn.Close() // an error means that it is closed already
	}
}

// Follow keeps to what the directory says until ctx ends. It calls ready once,
// when it is known for the first time.
func (r *Revocations) Follow(ctx context.Context, dir *directory.Directory, ready func()) {
	for revoked := range dir.WatchRevoked(ctx) {
		r.Set(revoked)
		if ready != nil {
			ready()
			ready = nil
		}
	}
}

// add keeps a connection so that it can be closed. The error wraps
// pod.ErrUntrusted when the certificate was revoked since the handshake.
func (r *Revocations) add(conn *peerConn, leaf *x509.Certificate) error {
	serial := trust.Serial(leaf)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.revoked[serial] {
		return fmt.Errorf("%w: the certificate was revoked", pod.ErrUntrusted)
	}
	if !conn.closed {
		r.conns[conn] = serial
	}
	return nil
}

// note adds the connection of a call, the first time.
func (r *Revocations) note(ctx context.Context, leaf *x509.Certificate) error {
	c, ok := ctx.Value(connectionKey{}).(*connection)
	if !ok {
		return nil
	}
	conn := findPeerConn(c.conn)
	if conn == nil || conn.noted.Swap(true) {
		return nil
	}
	return r.add(conn, leaf)
}

// wrap makes a connection known here once add is called, until it is closed.
func (r *Revocations) wrap(conn net.Conn) *peerConn { return &peerConn{Conn: conn, revocations: r} }
