package daemon

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	poddv1 "podd/api/podd/v1"
	"podd/directory"
	"podd/pod"
	"podd/trust"
)

// maxAddresses bounds how many addresses a certificate may have.
const maxAddresses = 16

// issuer gives out certificates. Only the daemon that has the authority has one.
type issuer struct {
	authority *trust.Authority
	store     *trust.Store
	dir       *directory.Directory
	// urls is where others find the directory.
	urls string
	// lifetime is that of daemons' certificates.
	lifetime time.Duration
	// mu keeps two from being given one name.
	mu sync.Mutex
}

// issue makes a certificate and records it; without the record it could not be
// revoked, so without it nobody gets to see the certificate.
func (i *issuer) issue(ctx context.Context, request []byte, p trust.Profile, renewal bool) ([]byte, error) {
	p.Lifetime = trust.UserLifetime
	if p.Identity.Kind.Daemon() {
		p.Lifetime = i.lifetime
	}
	chain, leaf, err := i.authority.Issue(request, p)
	if err != nil {
		return nil, err
	}
	certificate := directory.Certificate{Serial: trust.Serial(leaf), ExpiresAt: leaf.NotAfter}
	return chain, i.dir.AddCertificate(ctx, p.Identity, certificate, renewal)
}

// join answers who has a token.
func (i *issuer) join(ctx context.Context, r *poddv1.JoinRequest) (*poddv1.JoinResponse, error) {
	profile := trust.Profile{Identity: trust.Identity{Kind: trust.Kind(r.GetKind()), Name: r.GetName()}}
	if len(r.GetAddresses()) > maxAddresses {
		return nil, fmt.Errorf("%w: %d addresses: want at most %d", pod.ErrInvalid, len(r.GetAddresses()), maxAddresses)
	}
	for _, text := range r.GetAddresses() {
		address, err := netip.ParseAddr(text)
		if err != nil {
			return nil, fmt.Errorf("%w: address %q", pod.ErrInvalid, text)
		}
		profile.Addresses = append(profile.Addresses, address)
	}
	csr, err := x509.ParseCertificateRequest(r.GetRequest())
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: certificate request: %w", pod.ErrInvalid, err)
	}
	secretHash, key := trust.SecretHash(r.GetSecret()), publicKeyHash(csr.RawSubjectPublicKeyInfo)
	i.mu.Lock()
	defer i.mu.Unlock()
	// A token that is used by mistake is not used up.
	if profile.Identity.Name, err = i.matchToken(ctx, r.GetId(), secretHash, key, profile.Identity); err != nil {
		return nil, err
	}
	token, err := i.dir.UseToken(ctx, r.GetId(), secretHash, key)
	if err != nil {
		return nil, err
	}
	profile.Identity.Role = token.Role
	chain, err := i.issue(ctx, r.GetRequest(), profile, false)
	if err != nil {
		return nil, err
	}
	response := &poddv1.JoinResponse{
		Certificate: string(chain), Authority: string(i.store.AuthorityPEM()), Role: string(token.Role),
	}
	if profile.Identity.Kind.Daemon() {
		response.Directory = i.urls
	}
	if secret := i.store.Secret(); secret != nil && profile.Identity.Kind == trust.KindHost {
		response.Secret = secret.String()
	}
	return response, nil
}

// publicKeyHash is what a token remembers of who used it.
func publicKeyHash(info []byte) string {
	sum := sha256.Sum256(info)
	return hex.EncodeToString(sum[:])
}

// matchToken makes sure that a token is for that member, and returns the name,
// which the token may know and the applicant not. It says nothing about a token
// whose secret the applicant does not know: UseToken will.
func (i *issuer) matchToken(ctx context.Context, id, secretHash, key string, who trust.Identity) (name string, err error) {
	tokens, err := i.dir.Tokens(ctx)
	if err != nil {
		return "", err
	}
	n := slices.IndexFunc(tokens, func(t directory.TokenRecord) bool { return t.ID == id && t.SecretHash == secretHash })
	if n < 0 {
		return who.Name, nil
	}
	t := tokens[n]
	if t.Kind != who.Kind {
		return "", fmt.Errorf("%w: the token admits a %s, not a %s", pod.ErrDenied, t.Kind, who.Kind)
	}
	if who.Name == "" {
		who.Name = t.Name
	}
	if err := pod.ValidateName(who.Name); err != nil {
		return "", err
	}
	if t.Name != "" && t.Name != who.Name {
		return "", fmt.Errorf("%w: the token is for %s %s, not for %s %s", pod.ErrDenied, t.Kind, t.Name, who.Kind, who.Name)
	}
	if t.Name != "" || t.UsedBy == key {
		return who.Name, nil
	}
	// Who may choose a name may not choose one that somebody has.
	m, err := i.member(ctx, who)
	if err == nil && m != nil && time.Now().Before(m.ExpiresAt()) {
		err = fmt.Errorf("%w: there is a %s %s already: choose another name, or make a token for that name if it is the same machine", pod.ErrExists, m.Kind, m.Name)
	}
	return who.Name, err
}

// member is the record of a member, nil if there is none.
func (i *issuer) member(ctx context.Context, who trust.Identity) (*directory.Member, error) {
	members, err := i.dir.Members(ctx)
	if err != nil {
		return nil, err
	}
	for _, m := range members {
		if m.Identity().Key() == who.Key() {
			return &m, nil
		}
	}
	return nil, nil
}

// renew gives the holder of a certificate another one for the same key. So a
// host that passes the call on gains nothing by it, whatever it says.
func (i *issuer) renew(ctx context.Context, old *x509.Certificate, request []byte) (*poddv1.RenewResponse, error) {
	if old == nil {
		return nil, fmt.Errorf("%w: only who has a certificate can renew it", pod.ErrInvalid)
	}
	identity, _, err := i.store.VerifyChain(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: old.Raw}), time.Now())
	if err != nil {
		return nil, err
	}
	csr, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, fmt.Errorf("%w: certificate request: %w", pod.ErrInvalid, err)
	}
	if publicKeyHash(csr.RawSubjectPublicKeyInfo) != publicKeyHash(old.RawSubjectPublicKeyInfo) {
		return nil, fmt.Errorf("%w: a certificate is renewed for the key that it is for", pod.ErrDenied)
	}
	// An older certificate must not bring back a role that was taken away.
	if m, err := i.member(ctx, identity); err != nil {
		return nil, err
	} else if m == nil || m.Role != identity.Role {
		return nil, fmt.Errorf("%w: %s is no member of the cluster any more: join again", pod.ErrDenied, identity)
	}
	chain, err := i.issue(ctx, request, profileOf(identity, old), true)
	if err != nil {
		return nil, err
	}
	return &poddv1.RenewResponse{Certificate: string(chain), Authority: string(i.store.AuthorityPEM())}, nil
}

// profileOf is what a certificate says, for another one that says the same.
func profileOf(identity trust.Identity, old *x509.Certificate) trust.Profile {
	p := trust.Profile{Identity: identity, Directory: slices.Contains(old.DNSNames, trust.DirectoryName)}
	for _, ip := range old.IPAddresses {
		if address, ok := netip.AddrFromSlice(ip); ok {
			p.Addresses = append(p.Addresses, address.Unmap())
		}
	}
	return p
}
