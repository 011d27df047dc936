package podd

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"strings"
	"time"

	"connectrpc.com/connect"

	"podd/api"
	"podd/pod"
)

// router passes calls that are about another host's pod, or about another
// host, on to the podd there.
type router struct {
	host string // this one
	// lookup finds the host a pod is on, and the API address of a host.
	podHost func(ctx context.Context, name string) (string, error)
	hostAPI func(ctx context.Context, name string) (string, error)
	local   http.Handler
	errors  *connect.ErrorWriter
	forward *httputil.ReverseProxy
}

// forwardedHeader marks a call that was passed on once. It is then served
// here whatever the directory says, so that two podds that disagree for a
// moment do not send a call back and forth.
const forwardedHeader = "Podd-Forwarded-By"

type targetKey struct{}

// target is where a call is passed on to.
type target struct{ host, api string }

// pingInterval is how long a connection to another daemon may be silent before
// it is asked for a sign of life, and how long that may take.
const pingInterval = 5 * time.Second

func newRouter(host string, podHost, hostAPI func(context.Context, string) (string, error), local http.Handler) *router {
	r := &router{host: host, podHost: podHost, hostAPI: hostAPI, local: local, errors: connect.NewErrorWriter()}
	r.forward = &httputil.ReverseProxy{
		Transport:     h2cTransport(),
		FlushInterval: -1, // streams must not wait in a buffer
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme = "http"
			p.Out.URL.Host = p.In.Context().Value(targetKey{}).(target).api
			p.Out.Header.Set(forwardedHeader, host)
			if p.Out.Body != nil && p.In.ProtoMajor >= 2 {
				// Its own wrapper of the body can't be closed, so that a
				// stream whose client is silent would not notice that
				// the other daemon has gone.
				p.Out.Body = p.In.Body
			}
		},
		ErrorHandler: func(w http.ResponseWriter, request *http.Request, err error) {
			to := request.Context().Value(targetKey{}).(target)
			r.fail(w, request, fmt.Errorf("%w: the podd of host %s at %s: %w", pod.ErrUnavailable, to.host, to.api, err))
		},
	}
	return r
}

// h2cTransport speaks HTTP/2 without TLS: bidirectional streams need HTTP/2.
func h2cTransport() *http.Transport {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	dialer := net.Dialer{Timeout: dialTimeout}
	return &http.Transport{
		Protocols:   protocols,
		DialContext: dialer.DialContext,
		// A peer that vanished without closing is noticed by its silence.
		HTTP2: &http.HTTP2Config{SendPingTimeout: pingInterval, PingTimeout: pingInterval},
	}
}

func (r *router) fail(w http.ResponseWriter, request *http.Request, err error) {
	if r.errors.IsSupported(request) {
		// The writer's own error can only be that the client has gone.
		_ = r.errors.Write(w, request, api.ErrorToConnect(err))
		return
	}
	http.Error(w, err.Error(), http.StatusBadGateway)
}

func (r *router) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	kind, name, routed := strings.Cut(request.Header.Get(api.RouteHeader), "/")
	if !routed || request.Header.Get(forwardedHeader) != "" {
		r.local.ServeHTTP(w, request)
		return
	}
	ctx := request.Context()
	host := name
	if kind == "pod" {
		var err error
		if host, err = r.podHost(ctx, name); err != nil {
			r.fail(w, request, err)
			return
		}
	}
	if host == r.host {
		r.local.ServeHTTP(w, request)
		return
	}
	address, err := r.hostAPI(ctx, host)
	if err != nil {
		r.fail(w, request, err)
		return
	}
	r.forward.ServeHTTP(w, request.WithContext(context.WithValue(ctx, targetKey{}, target{host, address})))
}
