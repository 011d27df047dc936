package podd

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httputil"
	"strings"

	"connectrpc.com/connect"

	"podd/api"
	"podd/daemon"
	"podd/pod"
	"podd/trust"
)

// routes finds out which daemon a call is for.
type routes interface {
	// podHost is the name of the host a pod is on.
	podHost(ctx context.Context, pod string) (host string, err error)
	// hostAPI is the address of a host's API, for people.
	hostAPI(ctx context.Context, host string) (address string, err error)
	// servesHere says that a call about another host, or a pod there, is
	// served by this podd all the same.
	servesHere(request *http.Request, host string) bool
	// issuer is a daemon that has the cluster's authority.
	issuer(ctx context.Context) (trust.Identity, error)
}

// router passes calls that are about another host's pod, or about another
// host, on to the podd there, and joining to who has the authority.
type router struct {
	self    trust.Identity
	routes  routes
	local   http.Handler
	errors  *connect.ErrorWriter
	forward *httputil.ReverseProxy
}

type targetKey struct{}

// target is where a call is passed on to.
type target struct {
	who     trust.Identity
	address string // for people
}

func newRouter(self trust.Identity, routes routes, peers http.RoundTripper, local http.Handler, log *slog.Logger) *router {
	r := &router{self: self, routes: routes, local: local, errors: connect.NewErrorWriter()}
	r.forward = &httputil.ReverseProxy{
		Transport:     peers,
		FlushInterval: -1, // streams must not wait in a buffer
		// Both ends of a stream that breaks are told by their connections.
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		Rewrite: func(p *httputil.ProxyRequest) {
			ctx := p.In.Context()
			to := ctx.Value(targetKey{}).(target).who
			p.Out.URL.Scheme, p.Out.URL.Host = "https", to.ServerName()
			daemon.Forward(ctx, p.Out, self.Name)
			if p.Out.Body != nil && p.In.ProtoMajor >= 2 {
				// Its own wrapper of the body can't be closed, so that a
				// stream whose client is silent would not notice that
				// the other daemon has gone.
				p.Out.Body = p.In.Body
			}
		},
		ErrorHandler: func(w http.ResponseWriter, request *http.Request, err error) {
			to := request.Context().Value(targetKey{}).(target)
			r.fail(w, request, fmt.Errorf("%w: the daemon of %s at %s: %w", pod.ErrUnavailable, to.who, to.address, err))
		},
	}
	return r
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
	route := request.Header.Get(api.RouteHeader)
	// Only what the guard has judged is passed on under this host's name.
	if route == "" || request.Header.Get(daemon.ForwardedHeader) != "" || !daemon.IsProcedure(request.URL.Path) {
		r.local.ServeHTTP(w, request)
		return
	}
	ctx := request.Context()
	to, err := r.find(ctx, route)
	switch {
	case err != nil:
		r.fail(w, request, err)
	case to.who == r.self, to.who.Kind == trust.KindHost && r.routes.servesHere(request, to.who.Name):
		r.local.ServeHTTP(w, request)
	default:
		if to.who.Kind == trust.KindHost {
			if to.address, err = r.routes.hostAPI(ctx, to.who.Name); err != nil {
				r.fail(w, request, err)
				return
			}
		}
		r.forward.ServeHTTP(w, request.WithContext(context.WithValue(ctx, targetKey{}, to)))
	}
}

// find says whom a call is for.
func (r *router) find(ctx context.Context, route string) (to target, err error) {
	if route == api.IssuerRoute {
		// Who has the authority itself is as good as any.
		to.who, err = r.routes.issuer(ctx)
		return to, err
	}
	kind, name, _ := strings.Cut(route, "/")
	to.who = trust.Identity{Kind: trust.KindHost, Name: name}
	if kind == "pod" {
		if to.who.Name, err = r.routes.podHost(ctx, name); err != nil {
			return to, err
		}
	}
	return to, nil
}
