package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/doctor"
)

const (
	// holdTimeout bounds a call that waits for the hold. A move goes on
	// without one, so it is short.
	holdTimeout = 2 * time.Second
	// healthTimeout bounds the health check's question to the directory.
	healthTimeout = time.Second
)

// handler is everything podproxy serves on its API port.
func (p *Proxy) handler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle(poddv1connect.NewProxyServiceHandler(&service{reconciler: p.reconciler, examine: p.examine}, api.HandlerOptions()))
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) {
		if err := p.health(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	return mux
}

// service implements poddv1connect.ProxyServiceHandler.
type service struct {
	poddv1connect.UnimplementedProxyServiceHandler
	reconciler *reconciler
	// examine gathers what CheckProxy judges.
	examine func(ctx context.Context) (name string, facts []doctor.Facts)
}

func (s *service) Hold(ctx context.Context, request *connect.Request[poddv1.HoldRequest]) (*connect.Response[poddv1.HoldResponse], error) {
	ctx, cancel := context.WithTimeout(ctx, holdTimeout)
	defer cancel()
	if err := s.reconciler.Hold(ctx, request.Msg.GetMove()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.HoldResponse{}), nil
}

// health is nil when the directory answers and the kernel is as it should be.
func (p *Proxy) health(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	_, err := p.dir.Cluster(ctx)
	if failure := p.reconciler.failure.Load(); failure != nil {
		err = errors.Join(err, *failure)
	}
	return err
}
