package podd

import (
	"context"
	"fmt"
	"net/http"

	"podd/api"
	"podd/api/podd/v1/poddv1connect"
)

// handler is everything podd serves.
func (d *Daemon) handler() http.Handler {
	mux := http.NewServeMux()
	options := api.HandlerOptions()
	mux.Handle(poddv1connect.NewPodServiceHandler(&podService{d: d}, options))
	mux.Handle(poddv1connect.NewImageServiceHandler(&imageService{d}, options))
	mux.Handle(poddv1connect.NewHostServiceHandler(&hostService{d: d}, options))
	mux.Handle(poddv1connect.NewMoveServiceHandler(&moveService{d: d}, options))
	mux.Handle(poddv1connect.NewTargetServiceHandler(&targetService{d}, options))
	mux.HandleFunc("POST "+transferPath, d.serveTransfer)
	mux.Handle("GET /metrics", d.metrics.handler())
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	return newRouter(d.Name, d.podHost, d.hostAPI, mux)
}

func (d *Daemon) podHost(ctx context.Context, name string) (string, error) {
	p, err := d.dir.Pod(ctx, name)
	if err != nil {
		return "", err
	}
	return p.Binding.Host, nil
}

func (d *Daemon) hostAPI(ctx context.Context, name string) (string, error) {
	host, err := d.dir.Host(ctx, name)
	if err != nil {
		return "", err
	}
	return host.API.String(), nil
}
