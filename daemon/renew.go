package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"connectrpc.com/connect"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/directory"
	"podd/pod"
	"podd/trust"
)

const (
	// renewTimeout bounds one attempt to renew a certificate.
	renewTimeout = 10 * time.Second
	// renewRetry is the pause after the first attempt that failed; it doubles
	// up to maxRenewRetry, or a tenth of what is left if that is less.
	renewRetry    = time.Second
	maxRenewRetry = 10 * time.Minute
)

// renewer keeps a daemon's certificate good.
type renewer struct {
	store  *trust.Store
	dir    *directory.Directory
	peers  *Peers
	issuer *issuer // nil where the authority is not
	log    *slog.Logger
}

// run renews the certificate whenever it is time, until ctx ends.
func (r *renewer) run(ctx context.Context) {
	for {
		// Hosts that joined together need not all come at once.
		at := r.store.RenewAt()
		if left := time.Until(at); left > 0 {
			at = at.Add(rand.N(left/10 + 1))
		}
		if !wait(ctx, time.Until(at)) {
			return
		}
		for pause := renewRetry; ; pause = min(2*pause, maxRenewRetry) {
			err := r.renew(ctx)
			if err == nil {
				r.log.Info("the certificate was renewed", "until", r.store.Leaf().NotAfter)
				break
			}
			if ctx.Err() != nil {
				return
			}
			left := time.Until(r.store.Leaf().NotAfter)
			r.log.Warn("renewing the certificate failed; trying again", "until", r.store.Leaf().NotAfter, "error", err)
			if left <= 0 {
				left = maxRenewRetry // too late, unless the issuer's clock is slow
			}
			if !wait(ctx, min(pause, max(left/10, renewRetry/10))) {
				return
			}
		}
	}
}

// wait returns false when ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// renew gets a new certificate once.
func (r *renewer) renew(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, renewTimeout)
	defer cancel()
	request, err := trust.NewRequest(r.store.Key())
	if err != nil {
		return err
	}
	if r.issuer != nil {
		chain, err := r.issuer.issue(ctx, request, profileOf(r.store.Identity(), r.store.Leaf()), false)
		if err != nil {
			return err
		}
		return r.store.Replace(chain)
	}
	issuers, err := Issuers(ctx, r.dir)
	if err != nil {
		return err
	}
	failures := []error{fmt.Errorf("%w: no daemon that has the cluster's authority answers", pod.ErrUnavailable)}
	for _, i := range issuers {
		client := poddv1connect.NewTrustServiceClient(r.peers.Client(), PeerURL(i.Kind, i.Name), api.ClientOptions())
		response, err := client.Renew(ctx, connect.NewRequest(&poddv1.RenewRequest{Request: request}))
		if err == nil {
			return r.store.Replace([]byte(response.Msg.GetCertificate()))
		}
		failures = append(failures, fmt.Errorf("asking %s: %w", i, err))
	}
	return errors.Join(failures...)
}

// Issuers finds the daemons that have the cluster's authority.
func Issuers(ctx context.Context, dir *directory.Directory) ([]trust.Identity, error) {
	proxies, err := dir.Proxies(ctx)
	if err != nil {
		return nil, err
	}
	hosts, err := dir.Hosts(ctx)
	if err != nil {
		return nil, err
	}
	var out []trust.Identity
	for _, p := range proxies {
		if p.Issuer {
			out = append(out, trust.Identity{Kind: trust.KindProxy, Name: p.Name})
		}
	}
	for _, h := range hosts {
		if h.Issuer {
			out = append(out, trust.Identity{Kind: trust.KindHost, Name: h.Name})
		}
	}
	return out, nil
}
