package daemon

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"podd/directory"
	"podd/pod"
	"podd/trust"
)

const (
	// dialTimeout bounds a connection to another daemon, with its handshake.
	dialTimeout = 5 * time.Second
	// pingInterval is how long a connection to another daemon may be silent
	// before it is asked for a sign of life, and how long that may take.
	pingInterval = 5 * time.Second
)

// FindPeer finds the API of a daemon by its kind and name.
type FindPeer func(ctx context.Context, kind trust.Kind, name string) (netip.AddrPort, error)

// FindIn looks daemons up in the directory. Its errors wrap pod.ErrNotFound for
// one that never joined.
func FindIn(dir *directory.Directory) FindPeer {
	return func(ctx context.Context, kind trust.Kind, name string) (netip.AddrPort, error) {
		switch kind {
		case trust.KindHost:
			host, err := dir.Host(ctx, name)
			if err != nil {
				return netip.AddrPort{}, err
			}
			return host.API, nil
		case trust.KindProxy:
			proxies, err := dir.Proxies(ctx)
			if err != nil {
				return netip.AddrPort{}, err
			}
			for _, p := range proxies {
				if p.Name == name {
					return p.API, nil
				}
			}
		}
		return netip.AddrPort{}, fmt.Errorf("%s %s: %w", kind, name, pod.ErrNotFound)
	}
}

// Connect opens a connection to a daemon, over which TLS is spoken then; who is
// at its other end is not known yet. at is where that is, for people.
type Connect func(ctx context.Context, kind trust.Kind, name string) (conn net.Conn, at string, err error)

// Peers is how a daemon calls others: over TLS, verified by name, wherever the
// directory says that they are. It implements http.RoundTripper for URLs of
// PeerURL.
type Peers struct {
	store       *trust.Store
	revocations *Revocations
	connect     Connect
	timeout     time.Duration // of connect and the handshake

	mu        sync.Mutex
	leaf      *x509.Certificate // that transport shows
	transport *http.Transport
	retired   []*http.Transport
}

// NewPeers makes a client for the daemon whose credentials are in store.
func NewPeers(store *trust.Store, revocations *Revocations, find FindPeer) *Peers {
	return &Peers{store: store, revocations: revocations, timeout: dialTimeout, connect: func(ctx context.Context, kind trust.Kind, name string) (net.Conn, string, error) {
		address, err := find(ctx, kind, name)
		if err != nil {
			return nil, "", err
		}
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "tcp", address.String())
		if err != nil {
			return nil, "", fmt.Errorf("%w: connecting to %s: %w", pod.ErrUnavailable, address, err)
		}
		return conn, address.String(), nil
	}}
}

// Through makes a client with the same credentials that reaches the others by
// another way, which may take up to timeout. Whoever is in between sees nothing:
// the handshake is with the daemon that is called.
func (p *Peers) Through(connect Connect, timeout time.Duration) *Peers {
	return &Peers{store: p.store, revocations: p.revocations, connect: connect, timeout: timeout}
}

// PeerURL is the address of a daemon in URLs; the port does not matter.
func PeerURL(kind trust.Kind, name string) string { return "https://" + trust.ServerName(kind, name) }

// Client calls other daemons.
func (p *Peers) Client() *http.Client { return &http.Client{Transport: p} }

// RoundTrip implements http.RoundTripper.
func (p *Peers) RoundTrip(request *http.Request) (*http.Response, error) {
	return p.current().RoundTrip(request)
}

// CloseIdle closes connections that nobody uses.
func (p *Peers) CloseIdle() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range append(p.retired, p.transport) {
		if t != nil {
			t.CloseIdleConnections()
		}
	}
}

// current is the transport whose connections show today's certificate: the
// other end refuses calls on a connection whose certificate has expired. Calls
// under way on older connections go on.
func (p *Peers) current() *http.Transport {
	p.mu.Lock()
	defer p.mu.Unlock()
	if leaf := p.store.Leaf(); leaf != p.leaf {
		if p.transport != nil {
			p.retired = append(p.retired, p.transport)
		}
		for _, t := range p.retired {
			t.CloseIdleConnections()
		}
		p.leaf, p.transport = leaf, p.newTransport()
	}
	return p.transport
}

func (p *Peers) newTransport() *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true) // streams in both directions
	return &http.Transport{
		Protocols: protocols,
		DialTLSContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			server, _, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			kind, name, err := parseServerName(server)
			if err != nil {
				return nil, err
			}
			return p.Dial(ctx, kind, name, "h2")
		},
		// A peer that vanished without closing is noticed by its silence.
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingInterval, PingTimeout: pingInterval},
	}
}

func parseServerName(server string) (trust.Kind, string, error) {
	for _, kind := range []trust.Kind{trust.KindHost, trust.KindProxy} {
		if name, ok := strings.CutSuffix(server, trust.ServerName(kind, "")); ok && pod.ValidateName(name) == nil {
			return kind, name, nil
		}
	}
	return "", "", fmt.Errorf("%w: %q names no daemon", pod.ErrInvalid, server)
}

// Dial connects to a daemon and makes sure that it is that one. The error wraps
// pod.ErrUnavailable when it can't be reached, pod.ErrUntrusted when somebody
// else is there.
func (p *Peers) Dial(ctx context.Context, kind trust.Kind, name, protocol string) (*tls.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.timeout)
	defer cancel()
	raw, at, err := p.connect(ctx, kind, name)
	if err != nil {
		return nil, err
	}
	config := p.store.ClientTLS(trust.ServerName(kind, name))
	config.NextProtos = []string{protocol}
	config.DynamicRecordSizingDisabled = true // it is for browsers far away
	inner := p.revocations.wrap(raw)
	conn := tls.Client(inner, config)
	err = conn.HandshakeContext(ctx)
	if err == nil {
		err = p.revocations.add(inner, conn.ConnectionState().PeerCertificates[0])
	}
	if err == nil {
		return conn, nil
	}
	sentinel := pod.ErrUnavailable
	var wrong *tls.CertificateVerificationError
	if errors.As(err, &wrong) || errors.Is(err, pod.ErrUntrusted) {
		sentinel = pod.ErrUntrusted
	}
	inner.Close() // the error that counts is the handshake's
	return nil, fmt.Errorf("%w: connecting to %s %s at %s: %w", sentinel, kind, name, at, err)
}
