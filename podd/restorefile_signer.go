package podd

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"time"

	"podd/archive"
	"podd/directory"
	"podd/pod"
	"podd/trust"
)

// verifySigner accepts the certificate of a host of this cluster: of the one
// that the file says has written it.
func (d *Daemon) verifySigner(ctx context.Context, host string) archive.VerifyChain {
	return func(chain []byte, at time.Time) (*x509.Certificate, error) {
		identity, leaf, err := d.cluster.Store.VerifyChain(chain, at)
		if err != nil {
			return nil, err
		}
		if identity.Kind != trust.KindHost || identity.Name != host {
			return nil, fmt.Errorf("%w: %s has signed for host %s", pod.ErrUntrusted, identity, host)
		}
		members, err := d.dir.Members(ctx)
		if err != nil {
			return nil, err
		}
		return leaf, stillMember(members, identity, leaf)
	}
}

// joinMargin is more than how much earlier than it is issued a certificate is
// good.
const joinMargin = time.Hour

// stillMember refuses signatures of hosts that were turned out. It is known that
// a certificate was revoked only until that would have ended anyway, and who has
// its key can sign with any date; so the host must be a member, and the
// certificate one that was issued since it is.
func stillMember(members []directory.Member, signer trust.Identity, leaf *x509.Certificate) error {
	i := slices.IndexFunc(members, func(m directory.Member) bool { return m.Kind == signer.Kind && m.Name == signer.Name })
	if i < 0 {
		return fmt.Errorf("%w: %s was turned out of the cluster", pod.ErrUntrusted, signer)
	}
	known := slices.ContainsFunc(members[i].Certificates, func(c directory.Certificate) bool { return c.Serial == trust.Serial(leaf) })
	if !known && leaf.NotBefore.Add(joinMargin).Before(members[i].JoinedAt) {
		return fmt.Errorf("%w: the certificate is one that %s had before it was turned out of the cluster and joined anew", pod.ErrUntrusted, signer)
	}
	return nil
}
