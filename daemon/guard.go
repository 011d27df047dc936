package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"podd/api"
	"podd/pod"
	"podd/trust"
)

const (
	// maxMessage bounds one message of a call, in bytes: nobody may make a
	// daemon keep more in memory than any call needs.
	maxMessage = 4 << 20
	// maxJoin is the same for a call by somebody who has proved nothing.
	maxJoin = 64 << 10
)

// Guard stands before an API: it finds out who calls, refuses what he may not
// do, and writes down what he changes.
type Guard struct {
	store       *trust.Store
	revocations *Revocations
	audit       *Audit
	log         *slog.Logger
	errors      *connect.ErrorWriter
}

// NewGuard makes the guard of a daemon's API.
func NewGuard(store *trust.Store, revocations *Revocations, audit *Audit, log *slog.Logger) *Guard {
	return &Guard{store: store, revocations: revocations, audit: audit, log: log, errors: connect.NewErrorWriter()}
}

// Wrap makes next see only calls whose caller may make them, with the caller
// in their context. What is no procedure of the API is left to next.
func (g *Guard) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		caller, leaf, err := g.identify(r)
		if err == nil && r.TLS != nil && len(r.TLS.VerifiedChains) > 0 {
			err = g.revocations.note(r.Context(), r.TLS.VerifiedChains[0][0])
		}
		procedure := r.URL.Path
		if err == nil && IsProcedure(procedure) {
			err = permit(caller, procedure)
		}
		if err != nil {
			g.refuse(w, r, caller, began, err)
			return
		}
		if !caller.Known() {
			r.Body = http.MaxBytesReader(w, r.Body, maxJoin)
		}
		ctx := context.WithValue(WithCaller(r.Context(), caller), certificateKey{}, leaf)
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// refuse answers a call before anything of it has been read, and writes it down.
func (g *Guard) refuse(w http.ResponseWriter, r *http.Request, caller Caller, began time.Time, err error) {
	level := slog.LevelDebug // strangers must not fill the log
	if caller.Known() {
		level = slog.LevelInfo
	}
	g.log.Log(r.Context(), level, "a call was refused", "caller", caller, "address", caller.Address, "procedure", r.URL.Path, "error", err)
	if rules[r.URL.Path].mutates || errors.Is(err, pod.ErrUntrusted) {
		g.audit.record(caller, r.URL.Path, named("route", r.Header.Get(api.RouteHeader)), began, err)
	}
	if errors.Is(err, pod.ErrUntrusted) {
		// Of no use to who shows it, also for another call.
		err = fmt.Errorf("%w: %w", pod.ErrUnknownCaller, err)
	}
	if g.errors.IsSupported(r) {
		// The writer's own error can only be that the client has gone.
		_ = g.errors.Write(w, r, api.ErrorToConnect(err))
		return
	}
	http.Error(w, err.Error(), http.StatusForbidden)
}

// HandlerOptions are the options that every handler behind the guard is made
// with.
func (g *Guard) HandlerOptions() []connect.HandlerOption {
	return []connect.HandlerOption{
		connect.WithInterceptors(g), api.HandlerOptions(), connect.WithReadMaxBytes(maxMessage),
	}
}

// errPanic stands for the panic of a handler in the audit.
var errPanic = errors.New("the handler panicked")

// call lets a call have its way, if its caller may, and writes it down.
func (g *Guard) call(ctx context.Context, procedure string, subject func() string, serve func(Caller) error) error {
	caller, ok := CallerFrom(ctx)
	if !ok {
		// A server without Wrap: a mistake in the program.
		return fmt.Errorf("%w: the call did not pass the guard", pod.ErrUnknownCaller)
	}
	began, err := time.Now(), permit(caller, procedure)
	if rules[procedure].mutates {
		defer func() { g.audit.record(caller, procedure, subject(), began, err) }()
	}
	if err == nil {
		err = errPanic // unless serve returns
		err = serve(caller)
	}
	return err
}

// WrapUnary implements connect.Interceptor.
func (g *Guard) WrapUnary(next connect.UnaryFunc) connect.UnaryFunc {
	return func(ctx context.Context, request connect.AnyRequest) (response connect.AnyResponse, err error) {
		err = g.call(ctx, request.Spec().Procedure, func() string { return subject(request.Any()) }, func(c Caller) (err error) {
			if err = permitMessage(c, request.Any()); err == nil {
				response, err = next(ctx, request)
			}
			return err
		})
		if err != nil {
			return nil, api.ErrorToConnect(err)
		}
		return response, nil
	}
}

// WrapStreamingClient implements connect.Interceptor.
func (g *Guard) WrapStreamingClient(next connect.StreamingClientFunc) connect.StreamingClientFunc {
	return next
}

// WrapStreamingHandler implements connect.Interceptor.
func (g *Guard) WrapStreamingHandler(next connect.StreamingHandlerFunc) connect.StreamingHandlerFunc {
	return func(ctx context.Context, conn connect.StreamingHandlerConn) error {
		guarded := &guardedConn{StreamingHandlerConn: conn}
		err := g.call(ctx, conn.Spec().Procedure, guarded.about, func(c Caller) error {
			guarded.caller = c
			return next(ctx, guarded)
		})
		return api.ErrorToConnect(err)
	}
}

// guardedConn looks at what a caller sends in a stream.
type guardedConn struct {
	connect.StreamingHandlerConn
	caller Caller

	mu      sync.Mutex // some handlers receive in a goroutine of their own
	subject string
}

func (c *guardedConn) about() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.subject
}

// Receive implements connect.StreamingHandlerConn.
func (c *guardedConn) Receive(message any) error {
	if err := c.StreamingHandlerConn.Receive(message); err != nil {
		return err
	}
	if text := subject(message); text != "" {
		c.mu.Lock()
		c.subject = text
		c.mu.Unlock()
	}
	return api.ErrorToConnect(permitMessage(c.caller, message))
}

// HostFrom is the host that makes a request which is no procedure of the API. The
// error wraps pod.ErrUnknownCaller or pod.ErrDenied when it is no host, or does
// not speak for itself.
func HostFrom(r *http.Request) (string, error) {
	caller, ok := CallerFrom(r.Context())
	switch {
	case !ok || !caller.Known():
		return "", fmt.Errorf("%w: it needs the certificate of a host", pod.ErrUnknownCaller)
	case caller.Kind != trust.KindHost || caller.Via != "":
		return "", fmt.Errorf("%w: %s may not: it is for hosts only", pod.ErrDenied, caller)
	}
	return caller.Name, nil
}
