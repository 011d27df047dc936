package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"podd/api"
	"podd/api/podd/v1/poddv1connect"
	"podd/pod"
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
	// serves no pods. refused is true when it does not accept the certificate.
	unserved, refused atomic.Bool
}

// newClient makes a client that connects when it is first used. It speaks
// HTTP/2 from the first byte (exec and attach stream in both directions at once).
func newClient(to target) *client {
	c := &client{target: to}
	c.transport = newTransport(c.dial)
	http := bareClient{&http.Client{Transport: c.transport}, c}
	options := api.ClientOptions()
	c.pods = poddv1connect.NewPodServiceClient(http, baseURL, options)
	c.images = poddv1connect.NewImageServiceClient(http, baseURL, options)
	c.hosts = poddv1connect.NewHostServiceClient(http, baseURL, options)
	c.moves = poddv1connect.NewMoveServiceClient(http, baseURL, options)
	c.trust = poddv1connect.NewTrustServiceClient(http, baseURL, options)
	return c
}

// baseURL is what requests are addressed to. It means nothing: the name is not
// looked up, and whether a connection is encrypted is up to who dials.
const baseURL = "http://podd"

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// newTransport speaks HTTP/2 over what dial returns, a connection to a socket or
// one over which the TLS handshake is done.
func newTransport(dial dialFunc) *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{
		Protocols: protocols, DialContext: dial,
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingInterval, PingTimeout: pingTimeout},
	}
}

// dial connects to the first daemon that answers. One that serves pods is better
// than one that does not.
func (c *client) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	conn, err := c.dialAny(ctx)
	if err != nil {
		c.unreachable.Store(&err)
		var alert *net.OpError
		c.refused.Store(errors.As(err, &alert) && alert.Op == "remote error")
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
	var fallback *tlsConn
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
		case conn.servesPods():
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

// tlsConn is a connection whose server has accepted the client's certificate.
type tlsConn struct {
	*tls.Conn
	first []byte // what was read to find that out
}

// dialTLS connects, does the handshake and waits for the server's first byte:
// with TLS 1.3 (RFC 8446) the handshake is over for the client before the server
// has judged the client's certificate. A server of HTTP/2 speaks at once (RFC
// 9113, section 3.4).
func dialTLS(ctx context.Context, to address, config *tls.Config) (*tlsConn, error) {
	config.NextProtos = []string{"h2"}
	dialer := tls.Dialer{Config: config}
	conn, err := dialer.DialContext(ctx, to.network, to.location)
	if err != nil {
		return nil, hungUp(to, err)
	}
	c := &tlsConn{Conn: conn.(*tls.Conn), first: make([]byte, 1)}
	interrupt := context.AfterFunc(ctx, func() { c.Close() })
	_, err = io.ReadFull(c.Conn, c.first)
	if !interrupt() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.Close()
		return nil, hungUp(to, err)
	}
	return c, nil
}

// hungUp says where a connection failed, and that another attempt may succeed
// if the other end just closed it. With bytes unread a close is a reset.
func hungUp(to address, err error) error {
	if errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %s: %w", pod.ErrUnavailable, to, err)
	}
	return fmt.Errorf("%s: %w", to, err)
}

func (c *tlsConn) Read(p []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// servesPods is false for a connection to podproxy.
func (c *tlsConn) servesPods() bool {
	peer, err := trust.FromCertificate(c.ConnectionState().PeerCertificates[0])
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
	return response, withoutURL(err)
}

func withoutURL(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}

// joiner is bareClient for the one call before there are credentials.
type joiner struct{ http *http.Client }

func (j joiner) Do(request *http.Request) (*http.Response, error) {
	response, err := j.http.Do(request)
	return response, withoutURL(err)
}
