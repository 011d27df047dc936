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
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"

	"podd/daemon"
	"podd/directory"
	"podd/fault"
	"podd/pod"
	"podd/proxy/datapath"
	"podd/proxy/dns"
	"podd/trust"
	"podd/version"
)

// Proxy is one running podproxy.
type Proxy struct {
	settings
	log        *slog.Logger
	cluster    *daemon.Cluster
	dir        *daemon.Directory // the cluster's
	metrics    *metrics
	reconciler *reconciler
	relays     *relays
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
	log, err := daemon.NewLogger(s.LogLevel, s.LogFormat)
	if err != nil {
		return err
	}
	p := &Proxy{settings: s, metrics: newMetrics()}
	if os.Geteuid() != 0 {
		return fmt.Errorf("podproxy must run as root: it sets up routes and rules; try sudo podproxy")
	}
	unlock, err := daemon.Lock(s.RunDir, "podproxy")
	if err != nil {
		return err
	}
	defer unlock()
	credentials, err := daemon.Membership{
		StateDir: s.StateDir, Kind: trust.KindProxy, Name: s.Name, Addresses: []netip.Addr{s.physical}, Join: s.Join, Log: log,
	}.Open(ctx)
	if err != nil {
		return err
	}
	p.Name = credentials.Identity().Name
	p.log = log.With("proxy", p.Name)
	fault.Watch(s.RunDir)
	// The sockets come first: a port in use is noticed before anything is
	// touched.
	api, err := daemon.Listen(s.listen)
	if err != nil {
		return err
	}
	defer api.Close() // a second time does no harm
	local, err := daemon.ListenLocal(p.socketPath())
	if err != nil {
		return err
	}
	defer local.Close()
	handler := &dns.Handler{
		View:       p.view.Load,
		Nameserver: s.physical, Upstreams: s.upstreams, Observe: p.metrics.query,
	}
	names, err := dns.Listen(ctx, s.dnsListen, handler, p.log)
	if err != nil {
		return err
	}
	defer names.Close()

	if err := p.openDirectory(ctx, credentials); err != nil {
		return err
	}
	defer func() {
		if err := p.cluster.Close(); err != nil {
			p.log.Warn("stopping the directory failed", "error", err)
		}
	}()
	path, err := datapath.Open(s.datapath(), p.log)
	if err != nil {
		return err
	}
	p.reconciler = newReconciler(path, &p.view, p.metrics, p.log)
	p.reconciler.limit = p.holdLimit
	if p.ResyncInterval > 0 {
		p.reconciler.interval, p.reconciler.resync = p.ResyncInterval, time.Now().Add(p.ResyncInterval)
	}
	p.metrics.watch(path.Stats, p.view.Load, p.reconciler.oldestHold,
		func() time.Time { return p.cluster.Store.Leaf().NotAfter })
	err = p.serve(ctx, names, local, api)
	return errors.Join(err, path.Close())
}

// serve runs all parts until ctx ends or one of them fails.
func (p *Proxy) serve(ctx context.Context, names *dns.Server, listeners ...net.Listener) error {
	group, ctx := errgroup.WithContext(ctx)
	views := p.dir.Watch(ctx)
	p.relays = newRelays(ctx, p.dir.Directory, p.metrics, p.log)
	defer p.relays.close()
	group.Go(func() error {
		p.reconciler.run(ctx, views)
		return nil
	})
	group.Go(func() error { return names.Serve(ctx) })
	revocations := make(chan struct{})
	group.Go(func() error { return p.cluster.Run(ctx, func() { close(revocations) }) })
	handler := p.handler()
	for _, listener := range listeners {
		group.Go(func() error {
			// Whom not to answer comes before any answer.
			select {
			case <-revocations:
			case <-ctx.Done():
			}
			return p.cluster.Guard.Serve(ctx, listener, handler)
		})
	}
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
		if _, err := systemd.SdNotify(false, systemd.SdNotifyReady); err != nil {
			p.log.Warn("telling systemd that podproxy is ready failed", "error", err)
		}
		p.log.Info("podproxy is ready", "address", p.physical, "listen", p.listen, "socket", p.socketPath(), "dns", names.Addrs(),
			"public", p.prefixes.Public, "virtual", p.prefixes.Virtual, "zone", p.prefixes.Zone)
		<-ctx.Done()
		if err := registration.Close(); err != nil {
			p.log.Warn("the directory was not told that podproxy stops", "error", err)
		}
		return nil
	})
	return group.Wait()
}

func (p *Proxy) socketPath() string { return filepath.Join(p.RunDir, "podproxy.sock") }

// openDirectory connects to the directory and makes sure that it is this
// cluster's and has no other proxy.
func (p *Proxy) openDirectory(ctx context.Context, credentials *trust.Store) (err error) {
	p.cluster, err = daemon.OpenCluster(ctx, daemon.ClusterOptions{
		Store: credentials, StateDir: p.StateDir, Lifetime: p.lifetime, Log: p.log,
		Directory: daemon.DirectoryOptions{
			Address: p.Directory, CA: p.DirectoryCA, Certificate: p.DirectoryCert, Key: p.DirectoryKey,
			StateDir: p.StateDir, Listen: netip.AddrPortFrom(p.physical, directory.DefaultPort), Name: p.Name, Log: p.log,
		},
	})
	if err != nil {
		return err
	}
	p.dir = p.cluster.Directory
	defer func() {
		if err != nil {
			err = errors.Join(err, p.cluster.Close())
		}
	}()
	if err := p.dir.InitCluster(ctx, p.prefixes); err != nil {
		return err
	}
	proxies, err := p.dir.Proxies(ctx)
	if err != nil {
		return err
	}
	for _, other := range proxies {
		if other.Alive && other.Name != p.Name {
			return fmt.Errorf("%w: proxy %s at %s serves this cluster already", pod.ErrConflict, other.Name, other.Physical)
		}
	}
	return nil
}

func (p *Proxy) register(ctx context.Context) (*directory.Registration, error) {
	api := p.listen
	if api.Addr().IsUnspecified() {
		api = netip.AddrPortFrom(p.physical, api.Port())
	}
	return p.dir.RegisterProxy(ctx, pod.Proxy{
		Name: p.Name, Physical: p.physical, API: api, Issuer: p.cluster.Store.IsIssuer(),
		Zone: p.prefixes.Zone, PublicPrefix: p.prefixes.Public, VirtualPrefix: p.prefixes.Virtual,
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
	log, err := daemon.NewLogger(s.LogLevel, s.LogFormat)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("podproxy cleanup must run as root; try sudo podproxy cleanup")
	}
	unlock, err := daemon.Lock(s.RunDir, "podproxy")
	if err != nil {
		return err
	}
	defer unlock()
	return datapath.Cleanup(s.datapath(), log)
}
