package directory

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/keepalive"

	"podd/pod"
)

const (
	// DefaultPort is that of etcd's clients, and of an embedded directory.
	DefaultPort = 2379
	// DefaultTimeout bounds one operation, retries and contention included.
	DefaultTimeout = 5 * time.Second
	// DefaultLeaseTTL is how long a host or proxy that says nothing is
	// still taken to be alive.
	DefaultLeaseTTL = 10 * time.Second
	// maxFinishedMoves is how many finished moves the journal keeps.
	maxFinishedMoves = 1000
)

// Options say where the directory is.
type Options struct {
	// Endpoints are the client URLs of the etcd cluster, any number of them.
	Endpoints []string
	// TLS is used for https endpoints; nil means the system's roots.
	TLS *tls.Config
	// Timeout bounds each operation; 0 means DefaultTimeout.
	Timeout time.Duration
	// LeaseTTL is for how long a registration outlives its holder, in whole
	// seconds; 0 means DefaultLeaseTTL.
	LeaseTTL time.Duration
	// Log receives what no caller is told: lost leases, watches resumed.
	// Nil means slog.Default.
	Log *slog.Logger
}

// Directory is a client of the directory. It is safe for concurrent use.
type Directory struct {
	etcd      *clientv3.Client
	endpoints string
	timeout   time.Duration
	leaseTTL  time.Duration
	log       *slog.Logger
	// allocating is held while this process allocates an address or a label,
	// so that its own goroutines do not make each other's transactions fail.
	allocating chan struct{}
	// finishedMoves bounds the journal; a field so that a test need not make
	// a thousand moves.
	finishedMoves int
	// ahead holds, by move, what ReadAhead has read. aheadMu guards it.
	aheadMu sync.Mutex
	ahead   map[string]*moveRecords
}

// Open connects to the directory and checks that it answers. The error wraps
// pod.ErrUnavailable when it does not.
func Open(ctx context.Context, o Options) (*Directory, error) {
	if len(o.Endpoints) == 0 {
		return nil, fmt.Errorf("%w: no directory endpoint given", pod.ErrInvalid)
	}
	d := &Directory{
		endpoints:     strings.Join(o.Endpoints, ","),
		timeout:       o.Timeout,
		leaseTTL:      o.LeaseTTL,
		log:           o.Log,
		allocating:    make(chan struct{}, 1),
		finishedMoves: maxFinishedMoves,
		ahead:         map[string]*moveRecords{},
	}
	if d.timeout == 0 {
		d.timeout = DefaultTimeout
	}
	if d.leaseTTL == 0 {
		d.leaseTTL = DefaultLeaseTTL
	}
	if d.log == nil {
		d.log = slog.Default()
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:   o.Endpoints,
		TLS:         o.TLS,
		DialTimeout: d.timeout,
		// Every failure the client logs is returned or retried, so its own
		// log is for debugging only.
		Logger: zap.New(slogCore{log: d.log.With("component", "etcd-client"), cap: zapcore.DebugLevel}),
		DialOptions: []grpc.DialOption{
			// gRPC's own default waits up to two minutes between attempts;
			// the directory comes back sooner than that.
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
				MinConnectTimeout: 2 * time.Second,
			}),
			// Notices a peer that vanished without closing. etcd refuses
			// pings more frequent than one in five seconds.
			grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 6 * time.Second, Timeout: 3 * time.Second}),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("%w: directory endpoints %s: %w", pod.ErrInvalid, d.endpoints, err)
	}
	d.etcd = client
	reach, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	if _, err := client.Get(reach, clusterKey, clientv3.WithKeysOnly()); err != nil {
		err = d.explain(ctx, "opening the directory", err)
		if why := probe(ctx, o.Endpoints[0], o.TLS); why != nil && errors.Is(err, pod.ErrUnavailable) {
			err = fmt.Errorf("%w: %w", err, why)
		}
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// Close ends the connection. Registrations and watches end with it; close or
// cancel them first.
func (d *Directory) Close() error {
	if err := d.etcd.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("closing the directory: %w", err)
	}
	return nil
}
