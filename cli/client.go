package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"podd/api"
	"podd/api/podd/v1/poddv1connect"
	"podd/trust"
)

// How long to wait for a connection, and for a sign of life on a silent one.
const (
	dialTimeout  = 10 * time.Second
	pingInterval = 15 * time.Second
	pingTimeout  = 15 * time.Second
	// turnTimeout bounds the wait for one daemon of several.
	turnTimeout = 3 * time.Second
)

// client speaks the API to one daemon of the target.
type client struct {
	pods   poddv1connect.PodServiceClient
	images poddv1connect.ImageServiceClient
	hosts  poddv1connect.HostServiceClient
	moves  poddv1connect.MoveServiceClient
	trust  poddv1connect.TrustServiceClient

	target    target
	transport *http.Transport
	// unreachable is why the last attempt to connect to podd itself failed;
	// nil once one succeeded. It tells "no podd here" from "podd says that
	// another host can't be reached".
	unreachable atomic.Pointer[error]
	// reached is true once a connection to podd was made.
	reached atomic.Bool
	// unserved is true when the daemon does not know the call: podproxy
	// serves no pods. refused is true when it took the connection but not the
	// certificate.
	unserved, refused atomic.Bool
}

// newClient makes a client that connects when it is first used. It speaks
// HTTP/2 from the first byte (exec and attach stream in both directions at once).
func newClient(to target) *client {
	c := &client{target: to}
	c.transport = newTransport(c.dial, to.store != nil)
	http := bareClient{&http.Client{Transport: c.transport}, c}
	options := api.ClientOptions()
	c.pods = poddv1connect.NewPodServiceClient(http, to.baseURL(), options)
	c.images = poddv1connect.NewImageServiceClient(http, to.baseURL(), options)
	c.hosts = poddv1connect.NewHostServiceClient(http, to.baseURL(), options)
	c.moves = poddv1connect.NewMoveServiceClient(http, to.baseURL(), options)
	c.trust = poddv1connect.NewTrustServiceClient(http, to.baseURL(), options)
	return c
}

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// newTransport speaks HTTP/2 over what dial returns: a connection over which the
// handshake is done, or one to a socket.
func newTransport(dial dialFunc, encrypted bool) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(encrypted)
	protocols.SetUnencryptedHTTP2(!encrypted)
	t := &http.Transport{
		Protocols: protocols,
		HTTP2:     &http.HTTP2Config{SendPingTimeout: pingInterval, PingTimeout: pingTimeout},
	}
	if encrypted {
		t.DialTLSContext = dial
	} else {
		t.DialContext = dial
	}
	return t
}

// dial connects to the first daemon that answers. One that serves pods is better
// than one that does not.
func (c *client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	conn, err := c.dialAny(ctx)
	if err != nil {
		c.unreachable.Store(&err)
		return nil, err
	}
	c.unreachable.Store(nil)
	c.reached.Store(true)
	return conn, nil
}

func (c *client) dialAny(ctx context.Context) (net.Conn, error) {
	if c.target.store == nil {
		dialer := net.Dialer{Timeout: dialTimeout}
		return dialer.DialContext(ctx, c.target.addresses[0].network, c.target.addresses[0].location)
	}
	var fallback net.Conn
	var failures []error
	for _, to := range c.target.addresses {
		turn, cancel := context.WithTimeout(ctx, dialTimeout)
		if len(c.target.addresses) > 1 {
			turn, cancel = context.WithTimeout(ctx, turnTimeout)
		}
		conn, err := dialTLS(turn, to, c.target.store.ClientTLS(trust.DaemonName))
		cancel()
		switch {
		case err != nil:
			failures = append(failures, err)
		case servesPods(conn):
			if fallback != nil {
				fallback.Close()
			}
			return conn, nil
		case fallback == nil:
			fallback = conn
		default:
			conn.Close()
		}
	}
	if fallback != nil {
		return fallback, nil
	}
	return nil, errors.Join(failures...)
}

// dialTLS connects and does the handshake. HTTP/2 must be spoken.
func dialTLS(ctx context.Context, to address, config *tls.Config) (net.Conn, error) {
	config.NextProtos = []string{"h2"}
	dialer := tls.Dialer{Config: config}
	conn, err := dialer.DialContext(ctx, to.network, to.location)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", to, err)
	}
	return conn, nil
}

// servesPods is false for a connection to podproxy.
func servesPods(conn net.Conn) bool {
	peer, err := trust.FromCertificate(conn.(*tls.Conn).ConnectionState().PeerCertificates[0])
	return err == nil && peer.Kind == trust.KindHost
}

// hint says what to do next where a call failed because of the way to the
// daemon, else nothing.
func (c *client) hint() string {
	var unknown x509.UnknownAuthorityError
	failure := c.unreachable.Load()
	switch {
	case c.refused.Load():
		return "the certificate of context " + c.target.context + " was refused, as if revoked or expired: " + needToken
	case c.unserved.Load():
		return fmt.Sprintf("%s does not serve that: podproxy knows the cluster, but pods are the business of podd; ask one with --context", c.target)
	case failure == nil:
		return ""
	case errors.Is(*failure, fs.ErrPermission):
		return fmt.Sprintf("%s belongs to root: run podctl as root, or as a member of the socket's group", c.target)
	case errors.As(*failure, &unknown):
		return fmt.Sprintf("what listens there is not of the cluster of context %s", c.target.context)
	}
	return fmt.Sprintf("is podd running? asked %s", c.target)
}

func (c *client) close() { c.transport.CloseIdleConnections() }

// bareClient leaves the request's URL out of errors: users of podctl know
// nothing of it. It notes what hints depend on.
type bareClient struct {
	http *http.Client
	*client
}

func (b bareClient) Do(request *http.Request) (*http.Response, error) {
	response, err := b.http.Do(request)
	// An answer of the API, "not found" among them, is never plain text.
	if err == nil && response.StatusCode == http.StatusNotFound && strings.HasPrefix(response.Header.Get("Content-Type"), "text/plain") {
		b.unserved.Store(true)
	}
	// With TLS 1.3 (RFC 8446) the server judges the client's certificate when
	// the client has begun to send.
	var alert *net.OpError
	if errors.As(err, &alert) && alert.Op == "remote error" {
		b.refused.Store(true)
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return response, err
}
