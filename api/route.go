package api

import (
	"context"
	"net/http"

	"connectrpc.com/connect"

	poddv1 "podd/api/podd/v1"
)

// RouteHeader says which podd a call is for, as "pod/NAME" (the host the pod is
// on), "host/NAME" or IssuerRoute. A podd that gets a call for another passes it on. The
// header is derived from the request so that a podd can route a stream before
// its first message is read.
const RouteHeader = "Podd-Route"

// IssuerRoute is the RouteHeader of a call for the daemon that has the cluster's
// certificate authority.
const IssuerRoute = "issuer"

// route is the RouteHeader value for a request, empty when any podd will do.
func route(request any) string {
	switch r := request.(type) {
	case *poddv1.ExecRequest:
		request = r.GetStart()
	case *poddv1.AttachRequest:
		request = r.GetStart()
	case *poddv1.ImportImageRequest:
		request = r.GetHeader()
	case *poddv1.RestorePodRequest:
		request = r.GetHeader()
	case *poddv1.JoinRequest, *poddv1.RenewRequest:
		return IssuerRoute
	case *poddv1.ListMovesRequest, *poddv1.GetPodRequest:
		return "" // answered from the directory
	}
	if r, ok := request.(interface{ GetPod() string }); ok && r.GetPod() != "" {
		return "pod/" + r.GetPod()
	}
	if r, ok := request.(interface{ GetHost() string }); ok && r.GetHost() != "" {
		return "host/" + r.GetHost()
	}
	return ""
}

// clientInterceptor sets the RouteHeader and turns status codes back into
// sentinel errors.
type clientInterceptor struct{}

// ClientOptions are the options every client of the API is made with.
func ClientOptions() connect.Option {
	return connect.WithInterceptors(clientInterceptor{})
}

func setRoute(header http.Header, request any) {
	if r := route(request); r != "" {
		header.Set(RouteHeader, r)
	}
}

func (clientInterceptor) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (connect.AnyResponse, error) {
		if request.Spec().IsClient {
			setRoute(request.Header(), request.Any())
		}
		response, err := next(ctx, request)
		return response, ErrorFromConnect(err)
	}
}

func (clientInterceptor) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return func(ctx context.Context, spec connect.Spec) connect.StreamingClientConn {
		return &routedConn{StreamingClientConn: next(ctx, spec)}
	}
}

func (clientInterceptor) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return next
}

// routedConn sets the RouteHeader from the first message sent.
type routedConn struct {
	connect.StreamingClientConn
	sent bool
}

func (c *routedConn) Send(message any) error {
	if !c.sent {
		c.sent = true
		setRoute(c.RequestHeader(), message)
	}
	return c.StreamingClientConn.Send(message)
}

func (c *routedConn) Receive(message any) error {
	return ErrorFromConnect(c.StreamingClientConn.Receive(message))
}
