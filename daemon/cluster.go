package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"podd/api/podd/v1/poddv1connect"
	"podd/directory"
	"podd/pod"
	"podd/trust"
)

// ClusterOptions are for OpenCluster.
type ClusterOptions struct {
	Store     *trust.Store
	StateDir  string
	Directory DirectoryOptions
	// Lifetime is that of the certificates of daemons, where this one is the
	// issuer; 0 means trust.DaemonLifetime.
	Lifetime time.Duration
	Log      *slog.Logger
}

// Cluster is a daemon's part in its cluster: the directory, who may call it, how
// it calls others.
type Cluster struct {
	*Directory
	Store *trust.Store
	Guard *Guard
	Peers *Peers

	revocations *Revocations
	audit       *Audit
	issuer      *issuer
	log         *slog.Logger
}

// OpenCluster connects to the directory and prepares everything that Run keeps
// going.
func OpenCluster(ctx context.Context, o ClusterOptions) (_ *Cluster, err error) {
	c := &Cluster{Store: o.Store, revocations: NewRevocations(o.Log), log: o.Log}
	c.Store.SetRevoked(c.revocations.Revoked)
	if c.audit, err = OpenAudit(filepath.Join(o.StateDir, "audit.jsonl"), o.Log); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Close())
		}
	}()
	o.Directory.Credentials = o.Store
	if c.Directory, err = OpenDirectory(ctx, o.Directory); errors.Is(err, pod.ErrDenied) {
		return nil, fmt.Errorf("%w; if the cluster is to take this machine back, remove %s and start the daemon with --join and a new token of `podctl cluster join-token`", err, c.Store.Dir())
	} else if err != nil {
		return nil, err
	}
	c.Guard = NewGuard(c.Store, c.revocations, c.audit, o.Log)
	c.Peers = NewPeers(c.Store, c.revocations, FindIn(c.Directory.Directory))
	if !c.Store.IsIssuer() {
		return c, nil
	}
	authority, err := trust.LoadAuthority(c.Store.Dir())
	if err != nil {
		return nil, err
	}
	c.issuer = &issuer{authority: authority, store: c.Store, dir: c.Directory.Directory, urls: c.Directory.urls, lifetime: o.Lifetime}
	// Nobody admitted the first member; it is one all the same.
	leaf := c.Store.Leaf()
	own := directory.Certificate{Serial: trust.Serial(leaf), ExpiresAt: leaf.NotAfter}
	if err := c.Directory.AddCertificate(ctx, c.Store.Identity(), own, false); err != nil {
		return nil, err
	}
	return c, nil
}

// Run follows what is revoked and renews the daemon's certificate until ctx
// ends. It calls ready when it is known what is revoked: nobody is to be
// answered before. It returns an error when an embedded directory stopped by
// itself.
func (c *Cluster) Run(ctx context.Context, ready func()) error {
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		c.revocations.Follow(ctx, c.Directory.Directory, ready)
		return nil
	})
	group.Go(func() error {
		r := &renewer{store: c.Store, dir: c.Directory.Directory, peers: c.Peers, issuer: c.issuer, log: c.log}
		r.run(ctx)
		return nil
	})
	group.Go(func() error { return c.WatchEmbedded(ctx) })
	return group.Wait()
}

// HandleTrust serves the API by which members are admitted and turned out.
func (c *Cluster) HandleTrust(mux *http.ServeMux) {
	service := &trustService{store: c.Store, dir: c.Directory.Directory, issuer: c.issuer}
	mux.Handle(poddv1connect.NewTrustServiceHandler(service, c.Guard.HandlerOptions()...))
}

// Close ends the connections, and stops an embedded directory.
func (c *Cluster) Close() error {
	var errs []error
	if c.Peers != nil {
		c.Peers.CloseIdle()
	}
	if c.Directory != nil {
		errs = append(errs, c.Directory.Close())
	}
	return errors.Join(append(errs, c.audit.Close())...)
}
