package directory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"podd/pod"
	"podd/trust"
)

// EmbeddedOptions describe a directory that lives in the calling process.
type EmbeddedOptions struct {
	// DataDir holds the database; it is created with mode 0700.
	DataDir string
	// Listen is the address and port clients connect to; port 0 picks a
	// free one.
	Listen string
	// Credentials make the directory speak TLS, and only with daemons of the
	// cluster whose certificate was not revoked. Nil means neither encryption
	// nor authentication: for tests of other things.
	Credentials *trust.Store
	// Unsynced leaves it to the kernel when changes reach the disk: they outlive
	// the process, not the machine. It is for tests, which a disk that takes
	// seconds to sync would make fail.
	Unsynced bool
	// Name names the etcd member in its log; empty means "podd".
	Name string
	// Log receives etcd's log: its warnings and errors as such, the rest at
	// level debug. Nil means slog.Default.
	Log *slog.Logger
}

// Embedded is a one-member etcd in this process.
type Embedded struct {
	etcd    *embed.Etcd
	lock    *os.File
	grpc    *grpc.Server
	serving atomic.Bool
	failed  chan error
	closed  chan struct{}
	wait    sync.WaitGroup
	once    sync.Once
}

// StartEmbedded starts etcd and waits until it serves. A data directory is used
// by one process at a time: the error wraps pod.ErrConflict if another has it.
func StartEmbedded(ctx context.Context, o EmbeddedOptions) (*Embedded, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Name == "" {
		o.Name = "podd"
	}
	listen, err := listenURL(o.Listen, o.Credentials != nil)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("creating the directory's data directory: %w", err)
	}
	lock, err := lockDir(o.DataDir)
	if err != nil {
		return nil, err
	}
	e := &Embedded{lock: lock, failed: make(chan error, 1), closed: make(chan struct{})}
	serving := make(chan *grpc.Server, 1)
	e.etcd, err = embed.StartEtcd(e.config(o, listen, serving))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the embedded directory on %s: %w", o.Listen, err), lock.Close())
	}
	select {
	case <-ctx.Done():
		err = context.Cause(ctx)
	case err = <-e.etcd.Err():
	case <-e.etcd.Server.StopNotify():
		err = errors.New("etcd stopped")
	case e.grpc = <-serving:
		// The server is ready: etcd serves clients only after it is.
		e.serving.Store(true)
		e.wait.Go(e.supervise)
		return e, nil
	}
	e.etcd.Close()
	return nil, errors.Join(fmt.Errorf("waiting for the embedded directory on %s: %w", o.Listen, err), lock.Close())
}

func (e *Embedded) config(o EmbeddedOptions, listen url.URL, serving chan<- *grpc.Server) *embed.Config {
	c := embed.NewConfig()
	c.Name = o.Name
	c.Dir = filepath.Join(o.DataDir, "etcd")
	c.ListenClientUrls = []url.URL{listen}
	c.AdvertiseClientUrls = []url.URL{listen}
	// The only member has no peer to listen for; the URL is just its name
	// in the membership.
	c.ListenPeerUrls = nil
	c.InitialCluster = c.InitialClusterFromName(o.Name)
	// One member elects itself, so a short election costs nothing and makes
	// the start quick.
	c.TickMs, c.ElectionMs = 20, 200
	// Watchers that were away for less than this resume without a full list.
	c.AutoCompactionMode, c.AutoCompactionRetention = embed.CompactorModePeriodic, "10m"
	c.QuotaBackendBytes = 1 << 30
	c.BootstrapDefragThresholdMegabytes = 64
	c.EnableGRPCGateway = false
	c.UnsafeNoFsync = o.Unsynced
	c.GRPCKeepAliveInterval, c.GRPCKeepAliveTimeout = 6*time.Second, 3*time.Second
	if o.Credentials != nil {
		secure(c, o.Credentials, e.closed)
	}
	c.ServiceRegister = func(s *grpc.Server) { serving <- s }
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(slogCore{
		log: o.Log.With("component", "etcd"), cap: zapcore.ErrorLevel, serving: &e.serving,
	}))
	return c
}

// listenURL accepts HOST:PORT. Port 0 is resolved here because etcd insists on
// knowing its own URL beforehand.
func listenURL(addr string, secure bool) (url.URL, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return url.URL{}, fmt.Errorf("%w: directory listen address %q: %w", pod.ErrInvalid, addr, err)
	}
	if port == "0" {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return url.URL{}, fmt.Errorf("finding a free port on %s: %w", host, err)
		}
		addr = l.Addr().String()
		if err := l.Close(); err != nil {
			return url.URL{}, fmt.Errorf("finding a free port on %s: %w", host, err)
		}
	}
	if secure {
		return url.URL{Scheme: "https", Host: addr}, nil
	}
	return url.URL{Scheme: "http", Host: addr}, nil
}

// lockDir takes the data directory for this process. etcd itself would wait
// forever for the one that has it.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("locking the directory's data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = fmt.Errorf("%w: another process uses it", pod.ErrConflict)
		}
		return nil, errors.Join(fmt.Errorf("locking the directory's data directory %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// Endpoint is the client URL.
func (e *Embedded) Endpoint() string { return e.etcd.Config().AdvertiseClientUrls[0].String() }

// Failed reports, at most once, that etcd stopped by itself: its disk is full
// or failing.
func (e *Embedded) Failed() <-chan error { return e.failed }

func (e *Embedded) supervise() {
	select {
	case err := <-e.etcd.Err():
		e.failed <- fmt.Errorf("embedded directory: %w", err)
	case <-e.etcd.Server.StopNotify():
		e.failed <- errors.New("embedded directory: etcd stopped")
	case <-e.closed:
	}
}

// Close stops serving at once and flushes to disk. Clients see an operation
// under way fail as unavailable and ask again when the directory is back.
func (e *Embedded) Close() error {
	var err error
	e.once.Do(func() {
		e.serving.Store(false)
		close(e.closed)
		e.wait.Wait()
		// etcd would wait seconds for watches to end, and they never do. With
		// TLS gRPC is served by net/http, stream by stream: Stop ends those
		// that there are, and would wait for ever for a watch that a client
		// begins meanwhile, so from now on none is admitted.
		e.grpc.Stop()
		e.etcd.Close()
		err = e.lock.Close()
	})
	return err
}
