package daemon

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"

	"podd/api/podd/v1/poddv1connect"
	"podd/netconn"
	"podd/pod"
	"podd/trust"
)

// The headers of a call that a podd passes on to another daemon. They are
// believed only from a host; whoever else sends them has them removed.
const (
	// ForwardedHeader names the host that passed the call on. Such a call is
	// then served whatever the directory says, so that two podds that disagree
	// for a moment do not send it back and forth.
	ForwardedHeader = "Podd-Forwarded-By"
	// callerHeader is the identity of who made the call (trust.Identity.Text),
	// absent when it has proved none; addressHeader is where it came from.
	callerHeader  = "Podd-Caller"
	addressHeader = "Podd-Caller-Address"
	// certificateHeader is the caller's certificate, where it is to be renewed.
	certificateHeader = "Podd-Caller-Certificate"
)

var forwardHeaders = []string{ForwardedHeader, callerHeader, addressHeader, certificateHeader}

// Caller is who makes a call. The zero Identity is somebody who has not proved
// who he is.
type Caller struct {
	trust.Identity
	// Address is where the call came from: ADDRESS:PORT, or the process at a
	// unix socket.
	Address string
	// Via is the host that passed the call on ("host a"), empty if nobody did.
	Via string
}

// Known reports whether the caller has proved who he is.
func (c Caller) Known() bool { return c.Kind != "" }

// String is for people: "user jane (operator)".
func (c Caller) String() string {
	if !c.Known() {
		return "nobody"
	}
	return c.Identity.String()
}

type callerKey struct{}

// CallerFrom finds who makes the call that ctx belongs to; false outside of a
// call.
func CallerFrom(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

type certificateKey struct{}

// certificateFrom is the certificate by which the caller has proved who he is;
// for a call that was passed on, it is not verified. Nil if there is none.
func certificateFrom(ctx context.Context) *x509.Certificate {
	leaf, _ := ctx.Value(certificateKey{}).(*x509.Certificate)
	return leaf
}

// WithCaller is ctx for what is done in the name of c.
func WithCaller(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// connection is what is known about the connection of a call.
type connection struct {
	conn net.Conn
	// local is who is at the other end of a unix socket.
	local *Caller
}

type connectionKey struct{}

// connContext notes the connection in the context of its calls.
func connContext(ctx context.Context, conn net.Conn) context.Context {
	c := &connection{conn: conn}
	if socket, ok := conn.(*net.UnixConn); ok {
		// One whose peer can't be told is nobody's.
		c.local, _ = localCaller(socket)
	}
	return context.WithValue(ctx, connectionKey{}, c)
}

// localCaller asks the kernel who connected to a unix socket (SO_PEERCRED,
// unix(7)). The socket's mode lets in root and the daemon's own user only, who
// may do everything to the daemon anyway.
func localCaller(socket *net.UnixConn) (*Caller, error) {
	peer, err := netconn.Peer(socket)
	if err != nil {
		return nil, err
	}
	if peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		return nil, fmt.Errorf("%w: user %d at the daemon's socket", pod.ErrUnknownCaller, peer.Uid)
	}
	name := "root"
	if peer.Uid != 0 {
		name = "user " + strconv.Itoa(int(peer.Uid))
	}
	return &Caller{
		Identity: trust.Identity{Kind: trust.KindLocal, Name: name, Role: trust.RoleAdmin},
		Address:  fmt.Sprintf("process %d", peer.Pid),
	}, nil
}

// identify finds out who makes a call, and removes from the request what only a
// host may say. leaf is the certificate that proves it, nil if there is none.
// The error wraps pod.ErrUnknownCaller or pod.ErrUntrusted.
func (g *Guard) identify(r *http.Request) (caller Caller, leaf *x509.Certificate, err error) {
	said := map[string]string{}
	for _, name := range forwardHeaders {
		said[name] = r.Header.Get(name)
		r.Header.Del(name)
	}
	if c, ok := r.Context().Value(connectionKey{}).(*connection); ok && c.local != nil {
		return *c.local, nil, nil
	}
	caller.Address = r.RemoteAddr
	if r.TLS == nil || len(r.TLS.VerifiedChains) == 0 {
		return caller, nil, nil
	}
	leaf = r.TLS.VerifiedChains[0][0]
	identity, err := g.store.Peer(r.TLS)
	if err != nil {
		return caller, nil, err
	}
	// A connection may be older than the certificate's end.
	if time.Now().After(leaf.NotAfter) {
		return caller, nil, fmt.Errorf("%w: the certificate of %s expired at %s", pod.ErrUnknownCaller, identity, leaf.NotAfter.Format(time.RFC3339))
	}
	if said[ForwardedHeader] == "" || identity.Kind != trust.KindHost {
		caller.Identity = identity
		return caller, leaf, nil
	}
	// The call is not the host's own, and by none of its words it becomes so.
	r.Header.Set(ForwardedHeader, identity.Name)
	caller.Address, caller.Via = said[addressHeader], "host "+identity.Name
	if said[callerHeader] == "" {
		return caller, nil, nil
	}
	claimed, err := trust.ParseIdentity(said[callerHeader])
	if err == nil && claimed.Kind.Daemon() {
		err = fmt.Errorf("%w: a daemon's own call", pod.ErrUntrusted)
	}
	if err != nil {
		return caller, nil, fmt.Errorf("%w: host %s passed on a call of %q: %w", pod.ErrUntrusted, identity.Name, said[callerHeader], err)
	}
	caller.Identity = claimed
	if leaf, err = decodeCertificate(said[certificateHeader]); err != nil {
		return caller, nil, fmt.Errorf("%w: host %s passed on a call with a bad certificate: %w", pod.ErrUntrusted, identity.Name, err)
	}
	return caller, leaf, nil
}

// Forward writes into the header of a call that is passed on to another daemon
// who made it. out is made from the call that ctx belongs to.
func Forward(ctx context.Context, out *http.Request, host string) {
	for _, name := range forwardHeaders {
		out.Header.Del(name)
	}
	out.Header.Set(ForwardedHeader, host)
	caller, ok := CallerFrom(ctx)
	if !ok {
		return
	}
	out.Header.Set(addressHeader, caller.Address)
	if !caller.Known() {
		return
	}
	out.Header.Set(callerHeader, caller.Text())
	if leaf := certificateFrom(ctx); leaf != nil && out.URL.Path == poddv1connect.TrustServiceRenewProcedure {
		out.Header.Set(certificateHeader, base64.RawURLEncoding.EncodeToString(leaf.Raw))
	}
}

func decodeCertificate(text string) (*x509.Certificate, error) {
	if text == "" {
		return nil, nil
	}
	der, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}
