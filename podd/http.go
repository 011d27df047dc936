package podd

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"podd/api"
	"podd/api/podd/v1/poddv1connect"
)

// stopTimeout is how long calls under way are waited for when podd stops.
const stopTimeout = 2 * time.Second

// handler is everything podd serves.
func (d *Daemon) handler() http.Handler {
	mux := http.NewServeMux()
	options := api.HandlerOptions()
	mux.Handle(poddv1connect.NewPodServiceHandler(&podService{d}, options))
	mux.Handle(poddv1connect.NewImageServiceHandler(&imageService{d}, options))
	mux.Handle(poddv1connect.NewHostServiceHandler(&hostService{d}, options))
	mux.Handle(poddv1connect.NewMoveServiceHandler(&moveService{d}, options))
	mux.Handle(poddv1connect.NewTargetServiceHandler(&targetService{d}, options))
	mux.HandleFunc("POST "+transferPath, d.serveTransfer)
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

func newHTTPServer(handler http.Handler, log *slog.Logger) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler:           handler,
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// stopServer lets calls end for a moment; streams that follow something never
// end by themselves.
func stopServer(server *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	if err := server.Shutdown(ctx); err != nil {
		return server.Close()
	}
	return nil
}
