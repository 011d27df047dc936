package proxy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sys/unix"

	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/daemon"
	"podd/doctor"
	"podd/pod"
	"podd/trust"
	"podd/version"
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
	options := p.cluster.Guard.HandlerOptions()
	mux.Handle(poddv1connect.NewProxyServiceHandler(&service{reconciler: p.reconciler, move: p.dir.Move, examine: p.examine}, options...))
	mux.Handle(poddv1connect.NewHostServiceHandler(&hostService{Hosts: daemon.Hosts{Directory: p.dir.Directory}, name: p.Name}, options...))
	p.cluster.HandleTrust(mux)
	mux.Handle("POST "+daemon.RelayPath, p.relays)
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
	reconciler *reconciler
	// examine gathers what CheckProxy judges.
	examine func(ctx context.Context) (name string, facts []doctor.Facts)
	// move reads the journal.
	move func(ctx context.Context, id string) (*pod.Move, error)
}

// Hold holds for the host that a pod leaves, and for nobody else: a hold stops
// the pod's traffic for seconds.
func (s *service) Hold(ctx context.Context, request *connect.Request[poddv1.HoldRequest]) (*connect.Response[poddv1.HoldResponse], error) {
	ctx, cancel := context.WithTimeout(ctx, holdTimeout)
	defer cancel()
	id := request.Msg.GetMove()
	var move *pod.Move
	if view := s.reconciler.view.Load(); view != nil {
		move = view.Moves[id]
	}
	if move == nil { // too new
		var err error
		if move, err = s.move(ctx, id); err != nil {
			return nil, err
		}
	}
	if caller, _ := daemon.CallerFrom(ctx); caller.Kind != trust.KindHost || caller.Name != move.Source {
		return nil, fmt.Errorf("%w: %s may not hold the packets of pod %s: move %s comes from host %s", pod.ErrDenied, caller, move.Pod, id, move.Source)
	}
	if err := s.reconciler.Hold(ctx, id); err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.HoldResponse{}), nil
}

// hostService is what podproxy can tell of hosts: what is in the directory, and
// its own version.
type hostService struct {
	daemon.Hosts
	name string
}

// GetVersion implements poddv1connect.HostServiceHandler.
func (s *hostService) GetVersion(context.Context, *connect.Request[poddv1.GetVersionRequest]) (*connect.Response[poddv1.GetVersionResponse], error) {
	var system unix.Utsname
	if err := unix.Uname(&system); err != nil {
		return nil, fmt.Errorf("asking for the kernel's release: %w", err)
	}
	return connect.NewResponse(&poddv1.GetVersionResponse{
		Version: version.String(), Host: s.name, Kernel: unix.ByteSliceToString(system.Release[:]),
	}), nil
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
