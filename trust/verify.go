package trust

import (
	"crypto/x509"
	"fmt"
	"time"

	"podd/pod"
)

// VerifyChain is Store.VerifyChain for somebody who has nothing of a cluster but
// its authority's certificate, in PEM. What was revoked he does not know.
func VerifyChain(authorityPEM, chainPEM []byte, at time.Time) (Identity, *x509.Certificate, error) {
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authorityPEM) {
		return Identity{}, nil, fmt.Errorf("%w: no certificate of an authority", pod.ErrInvalid)
	}
	chain, err := parseChain(chainPEM)
	if err != nil {
		return Identity{}, nil, err
	}
	return (&Store{roots: roots}).verify(chain, at)
}
