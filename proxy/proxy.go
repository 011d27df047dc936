package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"podd/directory"
	"podd/pod"
	"podd/proxy/datapath"
	"podd/proxy/dns"
	"podd/version"
)

// Proxy is one running podproxy.
type Proxy struct {
	settings
	log        *slog.Logger
	dir        *directory.Directory
	embedded   *directory.Embedded // nil when the directory is elsewhere
	metrics    *metrics
	reconciler *reconciler
	// view is the directory as last seen.
	view atomic.Pointer[directory.View]
}

// Run is the whole life of the daemon: it returns nil after ctx ended, with
// connections through the proxy going on.
func Run(ctx context.Context, config Config) error {
	s, err := config.settings()
	if err != nil {
		return err
	}
	log, err := newLogger(s.LogLevel, s.LogFormat)
	if err != nil {
		return err
	}
	p := &Proxy{settings: s, log: log.With("proxy", s.Name), metrics: newMetrics()}
	if os.Geteuid() != 0 {
		return fmt.Errorf("podproxy must run as root: it sets up routes and rules; try sudo podproxy")
	}
	unlock, err := lockDir(s.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	// The sockets come first: a port in use is noticed before anything is
	// touched.
	api, err := listen(s.listen)
	if err != nil {
		return err
	}
	defer api.Close() // a second time does no harm
	handler := &dns.Handler{
		View:       p.view.Load,
		Nameserver: s.physical, Upstreams: s.upstreams, Observe: p.metrics.query,
	}
	names, err := dns.Listen(ctx, s.dnsListen, handler, p.log)
	if err != nil {
		return err
	}
	defer names.Close()

	stopDirectory, err := p.openDirectory(ctx)
	if err != nil {
		return err
	}
	defer stopDirectory()
	path, err := datapath.Open(s.datapath(), p.log)
	if err != nil {
		return err
	}
	p.reconciler = newReconciler(path, &p.view, p.metrics, p.log)
	p.metrics.watch(path.Stats, p.view.Load)
	err = p.serve(ctx, api, names)
	return errors.Join(err, path.Close())
}

// serve runs all parts until ctx ends or one of them fails.
func (p *Proxy) serve(ctx context.Context, api net.Listener, names *dns.Server) error {
	group, ctx := errgroup.WithContext(ctx)
	views := p.dir.Watch(ctx)
	group.Go(func() error {
		p.reconciler.run(ctx, views)
		return nil
	})
	group.Go(func() error { return names.Serve(ctx) })
	if p.embedded != nil {
		group.Go(func() error {
			select {
			case err := <-p.embedded.Failed():
				return err
			case <-ctx.Done():
				return nil
			}
		})
	}
	group.Go(func() error { return serveHTTP(ctx, newHTTPServer(p.handler(), p.log), api) })
	group.Go(func() error {
		// Known to the hosts once pods can be reached.
		select {
		case <-p.reconciler.ready:
		case <-ctx.Done():
			return nil
		}
		registration, err := p.register(ctx)
		if err != nil {
			return err
		}
		if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
			p.log.Warn("telling systemd that podproxy is ready failed", "error", err)
		}
		p.log.Info("podproxy is ready", "address", p.physical, "listen", api.Addr(), "dns", names.Addrs(),
			"public", p.cluster.Public, "virtual", p.cluster.Virtual, "zone", p.cluster.Zone)
		<-ctx.Done()
		if err := registration.Close(); err != nil {
			p.log.Warn("the directory was not told that podproxy stops", "error", err)
		}
		return nil
	})
	return group.Wait()
}

// openDirectory connects to the directory, after starting one if it is to be
// embedded, and makes sure that it is this cluster's and has no other proxy.
func (p *Proxy) openDirectory(ctx context.Context) (_ func(), err error) {
	var closers []func() error
	stop := func() {
		for i := len(closers) - 1; i >= 0; i-- {
			if err := closers[i](); err != nil {
				p.log.Warn("stopping the directory failed", "error", err)
			}
		}
	}
	defer func() {
		if err != nil {
			stop()
		}
	}()
	endpoints := p.endpoints
	if len(endpoints) == 0 {
		embedded, err := directory.StartEmbedded(ctx, directory.EmbeddedOptions{
			DataDir: filepath.Join(p.StateDir, "directory"),
			Listen:  netip.AddrPortFrom(p.physical, directory.DefaultPort).String(),
			Name:    p.Name,
			Log:     p.log,
		})
		if err != nil {
			return nil, err
		}
		closers = append(closers, embedded.Close)
		endpoints = []string{embedded.Endpoint()}
		p.embedded = embedded
	}
	if p.dir, err = directory.Open(ctx, directory.Options{Endpoints: endpoints, Log: p.log}); err != nil {
		return nil, err
	}
	closers = append(closers, p.dir.Close)
	if err := p.dir.InitCluster(ctx, p.cluster); err != nil {
		return nil, err
	}
	proxies, err := p.dir.Proxies(ctx)
	if err != nil {
		return nil, err
	}
	for _, other := range proxies {
		if other.Alive && other.Name != p.Name {
			return nil, fmt.Errorf("%w: proxy %s at %s serves this cluster already", pod.ErrConflict, other.Name, other.Physical)
		}
	}
	return stop, nil
}

func (p *Proxy) register(ctx context.Context) (*directory.Registration, error) {
	api := p.listen
	if api.Addr().IsUnspecified() {
		api = netip.AddrPortFrom(p.physical, api.Port())
	}
	return p.dir.RegisterProxy(ctx, pod.Proxy{
		Name: p.Name, Physical: p.physical, API: api,
		Zone: p.cluster.Zone, PublicPrefix: p.cluster.Public, VirtualPrefix: p.cluster.Virtual,
		Version: version.String(),
	})
}

// Cleanup removes what podproxy leaves in the kernel: devices, routes, rules.
// Connections through the proxy end. No podproxy may be running.
func Cleanup(config Config) error {
	s, err := config.settings()
	if err != nil {
		return err
	}
	log, err := newLogger(s.LogLevel, s.LogFormat)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("podproxy cleanup must run as root; try sudo podproxy cleanup")
	}
	unlock, err := lockDir(s.RunDir)
	if err != nil {
		return err
	}
	defer unlock()
	return datapath.Cleanup(s.datapath(), log)
}

func listen(at netip.AddrPort) (net.Listener, error) {
	l, err := net.Listen("tcp", at.String())
	if errors.Is(err, unix.EADDRINUSE) {
		err = fmt.Errorf("%w: port %d is in use by another program; choose another with --listen: %w", pod.ErrConflict, at.Port(), err)
	}
	if err != nil {
		return nil, fmt.Errorf("opening podproxy's port: %w", err)
	}
	return l, nil
}

// lockDir makes sure that one podproxy works with dir. The kernel drops the
// lock with the process, however it ends.
func lockDir(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("making podproxy's run directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "podproxy.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("%w: another podproxy runs with %s", pod.ErrConflict, dir)
	}
	return func() { f.Close() }, nil
}

// newLogger makes the log that goes to standard error.
func newLogger(level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("%w: log level %q: want debug, info, warn or error", pod.ErrInvalid, level)
	}
	options := &slog.HandlerOptions{Level: l}
	switch format {
	case "text":
		return slog.New(slog.NewTextHandler(os.Stderr, options)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(os.Stderr, options)), nil
	}
	return nil, fmt.Errorf("%w: log format %q: want text or json", pod.ErrInvalid, format)
}
