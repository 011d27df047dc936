package podd

import (
	"context"
	"fmt"
	"net/http"

	"podd/api/podd/v1/poddv1connect"
	"podd/daemon"
	"podd/pod"
	"podd/trust"
)

// handler is everything podd serves.
func (d *Daemon) handler() http.Handler {
	mux := http.NewServeMux()
	options := d.cluster.Guard.HandlerOptions()
	mux.Handle(poddv1connect.NewPodServiceHandler(&podService{d: d}, options...))
	mux.Handle(poddv1connect.NewImageServiceHandler(&imageService{d}, options...))
	mux.Handle(poddv1connect.NewHostServiceHandler(&hostService{Hosts: daemon.Hosts{Directory: d.dir.Directory}, d: d}, options...))
	mux.Handle(poddv1connect.NewMoveServiceHandler(&moveService{d: d}, options...))
	mux.Handle(poddv1connect.NewTargetServiceHandler(&targetService{d}, options...))
	d.cluster.HandleTrust(mux)
	mux.HandleFunc("POST "+transferPath, d.serveTransfer)
	mux.HandleFunc("POST "+memoryPath, d.serveMemory)
	mux.Handle("GET /metrics", d.metrics.handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	return newRouter(d.cluster.Store.Identity(), d, d.cluster.Peers, mux, d.log)
}

// podHost implements routes.
func (d *Daemon) podHost(ctx context.Context, name string) (string, error) {
	p, err := d.dir.Pod(ctx, name)
	if err != nil {
		return "", err
	}
	return p.Binding.Host, nil
}

// hostAPI implements routes.
func (d *Daemon) hostAPI(ctx context.Context, name string) (string, error) {
	host, err := d.dir.Host(ctx, name)
	if err != nil {
		return "", err
	}
	return host.API.String(), nil
}

// issuer implements routes.
func (d *Daemon) issuer(ctx context.Context) (trust.Identity, error) {
	issuers, err := daemon.Issuers(ctx, d.dir.Directory)
	if err != nil {
		return trust.Identity{}, err
	}
	if len(issuers) == 0 {
		return trust.Identity{}, fmt.Errorf("%w: no daemon that has the cluster's authority has joined", pod.ErrUnavailable)
	}
	return issuers[0], nil
}
