package podd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"podd/checkpoint"
	"podd/daemon"
	"podd/directory"
	"podd/namespace"
	"podd/namespace/image"
	"podd/pod"
	"podd/trust"
	"podd/vnet"
)

// Daemon is one running podd.
type Daemon struct {
	settings
	log     *slog.Logger
	cluster *daemon.Cluster
	dir     *daemon.Directory // the cluster's
	runtime *namespace.Runtime
	images  *image.Store
	// engine is nil when there is no usable CRIU; engineErr says why. Pods
	// run without it, only moves don't.
	engine    *checkpoint.Engine
	engineErr error
	digests   digestCache
	claims    claims
	// memories are of pods that move, or have moved, from here.
	memories memories
	pace     pace
	// confirmations are of checkpoint files.
	confirmations confirmations
	// reconciler and drifts are the loop's that brings this host to what the
	// directory says.
	reconciler reconciler
	drifts     drifts
	metrics    *metrics

	// ctx ends when the daemon stops. Work that outlives the call that began
	// it, such as a move, belongs to tasks and ends with ctx.
	ctx   context.Context
	tasks sync.WaitGroup

	mu      sync.Mutex
	network *vnet.Network
	pods    map[string]*localPod
}

// Run is the whole life of the daemon: it returns nil after ctx ended and
// everything was put in order, with the pods running on.
func Run(ctx context.Context, config Config) error {
	s, err := config.settings()
	if err != nil {
		return err
	}
	log, err := daemon.NewLogger(s.LogLevel, s.LogFormat)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("podd must run as root: it makes namespaces and mounts; try sudo podd")
	}
	d := &Daemon{settings: s, log: log, pods: map[string]*localPod{}}
	for _, dir := range []string{s.StateDir, s.RunDir, d.netnsDir(), d.imagesDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("making podd's directories: %w", err)
		}
	}
	unlock, err := daemon.Lock(s.RunDir, "podd")
	if err != nil {
		return err
	}
	defer unlock()
	credentials, err := daemon.Membership{
		StateDir: s.StateDir, Kind: trust.KindHost, Name: s.Name, Addresses: []netip.Addr{s.physical}, Join: s.Join, Log: log,
	}.Open(ctx)
	if err != nil {
		return err
	}
	d.Name = credentials.Identity().Name
	d.log = log.With("host", d.Name)
	d.checkMounts()
	if err := d.mountImagesDir(); err != nil {
		return err
	}
	if err := d.removeSpools(); err != nil {
		return err
	}
	d.metrics = newMetrics(d)
	d.engine, d.engineErr = checkpoint.Open(checkpoint.Options{CRIUPath: s.CRIUPath, PageFilter: s.PageFilter, Log: d.log, Debug: s.LogLevel == "debug"})
	if d.engineErr != nil {
		d.log.Warn("pods can't be moved from or to this host", "error", d.engineErr)
	}
	// The sockets come first: two daemons in one place are noticed before
	// anything is touched.
	listeners, err := d.listen()
	if err != nil {
		return err
	}
	defer func() {
		for _, l := range listeners {
			l.Close() // most often closed already, by who served it
		}
	}()
	return d.run(ctx, credentials, listeners)
}

// run is the daemon's life as a member of the cluster.
func (d *Daemon) run(ctx context.Context, credentials *trust.Store, listeners []net.Listener) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	group, ctx := errgroup.WithContext(ctx)
	d.ctx = ctx
	d.cluster, err = daemon.OpenCluster(ctx, daemon.ClusterOptions{
		Store: credentials, StateDir: d.StateDir, Lifetime: d.lifetime, Log: d.log,
		Directory: daemon.DirectoryOptions{
			Address: d.Directory, CA: d.DirectoryCA, Certificate: d.DirectoryCert, Key: d.DirectoryKey,
			StateDir: d.StateDir, Listen: netip.AddrPortFrom(d.physical, directory.DefaultPort), Name: d.Name, Log: d.log,
		},
	})
	if err != nil {
		return err
	}
	d.dir = d.cluster.Directory
	defer func() {
		if err := d.cluster.Close(); err != nil {
			d.log.Warn("closing the directory failed", "error", err)
		}
	}()
	registration, err := d.start(ctx, group, listeners)
	if err != nil {
		stop()
	}
	// Whatever was begun ends before what it uses is closed.
	err = errors.Join(err, group.Wait())
	d.tasks.Wait()
	if registration != nil {
		err = errors.Join(err, registration.Close())
	}
	return errors.Join(err, d.closeNetwork())
}

// start recovers what an earlier podd has left, and serves. What it begins is
// the group's, or the daemon's tasks; the registration is the caller's to close,
// beside an error too.
func (d *Daemon) start(ctx context.Context, group *errgroup.Group, listeners []net.Listener) (registration *directory.Registration, err error) {
	revocations := make(chan struct{})
	group.Go(func() error { return d.cluster.Run(ctx, func() { close(revocations) }) })
	if d.images, err = image.Open(image.Options{Dir: filepath.Join(d.StateDir, "images"), Log: d.log, InUse: d.imagesInUse}); err != nil {
		return nil, err
	}
	d.runtime, err = namespace.Open(namespace.Options{
		StateDir: d.StateDir, RunDir: d.RunDir, CgroupParent: d.CgroupParent, InitPath: d.InitPath, Images: d.images, Log: d.log,
	})
	if err != nil {
		return nil, err
	}
	// A podd that bears another one's name must not get to judge its pods.
	if registration, err = d.register(ctx); err != nil {
		return nil, err
	}
	d.background(d.tellRevoked)
	if err := d.recover(ctx); err != nil {
		return registration, err
	}
	handler := d.handler()
	relayed := daemon.NewHandedListener(net.TCPAddrFromAddrPort(d.settings.listen))
	group.Go(func() error {
		d.fetchRelayed(ctx, relayed)
		return nil
	})
	for _, listener := range append(listeners, relayed) {
		group.Go(func() error {
			// Whom not to answer comes before any answer.
			select {
			case <-revocations:
			case <-ctx.Done():
			}
			return d.cluster.Guard.Serve(ctx, listener, handler)
		})
	}
	if _, err := systemd.SdNotify(false, systemd.SdNotifyReady); err != nil {
		d.log.Warn("telling systemd that podd is ready failed", "error", err)
	}
	d.log.Info("podd is ready", "address", d.physical, "listen", d.settings.listen, "socket", d.socketPath(), "pods", len(d.pods))
	return registration, nil
}

func (d *Daemon) socketPath() string { return filepath.Join(d.RunDir, "podd.sock") }
func (d *Daemon) netnsDir() string   { return filepath.Join(d.RunDir, "netns") }
func (d *Daemon) imagesDir() string  { return filepath.Join(d.RunDir, "checkpoint") }

// netnsPath is where the network namespace of one incarnation is kept.
func (d *Daemon) netnsPath(name string, epoch pod.Epoch) string {
	return filepath.Join(d.netnsDir(), fmt.Sprintf("%s-%d", name, epoch))
}

// checkMounts warns when the mounts that podd makes end with it: then the next
// podd can't take over the pods of this one. Inside of some containers the
// first process can't be looked at; podd says nothing then.
func (d *Daemon) checkMounts() {
	own, err1 := os.Readlink("/proc/self/ns/mnt")
	machine, err2 := os.Readlink("/proc/1/ns/mnt")
	if err := errors.Join(err1, err2); err != nil {
		d.log.Debug("podd can't tell whether its mounts will outlive it", "error", err)
		return
	}
	if own != machine {
		d.log.Warn("podd has a mount namespace of its own, so it will not find its pods again after a restart: " +
			"remove PrivateTmp=, ProtectSystem= and the like from its service")
	}
}

// mountImagesDir puts a tmpfs under the images of moves: a restore reads them
// as fast as memory, and they are gone after a reboot.
func (d *Daemon) mountImagesDir() error {
	// That it is on a tmpfs says nothing: /run often is one, but a small one
	// that others need.
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, d.imagesDir(), 0, 0, &st); err != nil {
		return fmt.Errorf("looking at %s: %w", d.imagesDir(), err)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return nil
	}
	if err := unix.Mount("podd", d.imagesDir(), "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size=90%"); err != nil {
		return fmt.Errorf("mounting a tmpfs at %s: %w", d.imagesDir(), err)
	}
	return nil
}

// listen opens the unix socket, for root on this machine, and the TCP port,
// for the other daemons.
func (d *Daemon) listen() ([]net.Listener, error) {
	local, err := daemon.ListenLocal(d.socketPath())
	if err != nil {
		return nil, err
	}
	remote, err := daemon.Listen(d.settings.listen)
	if err != nil {
		local.Close()
		return nil, err
	}
	return []net.Listener{local, remote}, nil
}

func (d *Daemon) register(ctx context.Context) (*directory.Registration, error) {
	host := pod.Host{
		Name: d.Name, Physical: d.physical, API: d.settings.listen, MaxMoves: d.MaxMoves, Issuer: d.cluster.Store.IsIssuer(),
		StartedAt: time.Now().UTC(),
	}
	if host.API.Addr().IsUnspecified() {
		host.API = netip.AddrPortFrom(d.physical, host.API.Port())
	}
	if d.engine != nil {
		host.CRIU = d.engine.Version()
	}
	if err := describeMachine(&host); err != nil {
		return nil, err
	}
	// The directory refuses a name that a live host elsewhere has. A second
	// podd here, with directories of its own, would find none of the pods and
	// declare them lost.
	if known, err := d.dir.Host(ctx, d.Name); err == nil && known.Alive && known.API != host.API {
		return nil, fmt.Errorf("%w: a live host %s at %s; give this one another --name", pod.ErrExists, d.Name, known.API)
	} else if err != nil && !errors.Is(err, pod.ErrNotFound) {
		return nil, err
	}
	return d.dir.RegisterHost(ctx, host)
}

// errNoProxy means that no proxy was ever seen. It wraps pod.ErrUnavailable.
var errNoProxy = fmt.Errorf("%w: no proxy has joined the cluster: start podproxy with the same --directory", pod.ErrUnavailable)

// proxy finds the session proxy. The error wraps pod.ErrUnavailable when none
// has joined.
func (d *Daemon) proxy(ctx context.Context) (*pod.Proxy, error) {
	proxies, err := d.dir.Proxies(ctx)
	if err != nil {
		return nil, err
	}
	if len(proxies) == 0 {
		return nil, errNoProxy
	}
	// One that is alive, if there is one.
	i := max(0, slices.IndexFunc(proxies, func(p pod.Proxy) bool { return p.Alive }))
	return &proxies[i], nil
}

// net is the host's end of the labelled network. It needs the proxy's address,
// so it comes into being with the first pod.
func (d *Daemon) net(ctx context.Context) (*vnet.Network, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.network != nil {
		return d.network, nil
	}
	proxy, err := d.proxy(ctx)
	if err != nil {
		return nil, err
	}
	network, err := vnet.New(vnet.Config{Physical: d.physical, Proxy: proxy.Physical}, d.log)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(network.EnsureAnchor(), network.EnsureFirewall()); err != nil {
		return nil, errors.Join(err, network.Close())
	}
	d.network = network
	return network, nil
}

func (d *Daemon) closeNetwork() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.network == nil {
		return nil
	}
	return d.network.Close()
}

// background runs f until it ends by itself or the daemon stops. The daemon
// waits for it.
func (d *Daemon) background(f func(ctx context.Context)) {
	d.tasks.Go(func() { f(d.ctx) })
}
