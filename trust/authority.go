package trust

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"podd/pod"
)

const (
	// authorityLifetime is that of the CA's own certificate.
	authorityLifetime = 10 * 365 * 24 * time.Hour
	// DaemonLifetime and UserLifetime are how long certificates are good for
	// unless something else is asked. A daemon renews its own after a third of
	// that, so its issuer may be away for days.
	DaemonLifetime = 7 * 24 * time.Hour
	UserLifetime   = 30 * 24 * time.Hour
	// MinLifetime is the shortest that is issued.
	MinLifetime = time.Second
	// clockSkew is by how much the clocks of two machines may differ without a
	// new certificate being refused.
	clockSkew = 5 * time.Minute
)

// Authority is the cluster's certificate authority.
type Authority struct {
	certificate *x509.Certificate
	key         ed25519.PrivateKey
}

// Profile says what certificate to issue.
type Profile struct {
	Identity Identity
	// Addresses are what a daemon can be reached at. Nobody of the cluster
	// looks at them; other programs (a browser, curl) do.
	Addresses []netip.Addr
	// Directory adds DirectoryName.
	Directory bool
	// Lifetime from now on; 0 means DaemonLifetime or UserLifetime.
	Lifetime time.Duration
}

func newAuthority() (*Authority, error) {
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making the authority's key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		// The number tells clusters apart in other programs' error messages.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("podd cluster %08x", serial.Bytes()[:4])},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(authorityLifetime),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
	if err != nil {
		return nil, fmt.Errorf("making the authority's certificate: %w", err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making the authority's certificate: %w", err)
	}
	return &Authority{certificate: certificate, key: key}, nil
}

// newSerial is a random serial number of 127 bits (RFC 5280, section 4.1.2.2).
func newSerial() (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := rand.Read(b); err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	b[0] = b[0]&0x7f | 0x40 // positive, and always of the same length
	return new(big.Int).SetBytes(b), nil
}

// Serial is a certificate's serial number as it is written in the directory.
func Serial(c *x509.Certificate) string { return c.SerialNumber.Text(16) }

// LoadAuthority reads the authority of the member whose files are in dir. The
// error wraps pod.ErrNotFound when that member is no issuer.
func LoadAuthority(dir string) (*Authority, error) {
	if err := checkPrivate(dir); err != nil {
		return nil, err
	}
	key, err := readKey(filepath.Join(dir, authorityKeyFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the cluster's authority: %w in %s", pod.ErrNotFound, dir)
	}
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, authorityFile))
	if err != nil {
		return nil, fmt.Errorf("reading the authority's certificate: %w", err)
	}
	certificates, err := parseChain(data)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, authorityFile), err)
	}
	if !key.Public().(ed25519.PublicKey).Equal(certificates[0].PublicKey) {
		return nil, fmt.Errorf("%w: %s is not the key of %s", pod.ErrUntrusted, authorityKeyFile, filepath.Join(dir, authorityFile))
	}
	return &Authority{certificate: certificates[0], key: key}, nil
}

// Issue makes a certificate for the key that signed request (PKCS #10, DER).
// What the request itself asks for does not matter, only p does. It returns
// the chain in PEM, the new certificate first, and the certificate. The error
// wraps pod.ErrInvalid when the request is bad.
func (a *Authority) Issue(request []byte, p Profile) (chain []byte, leaf *x509.Certificate, err error) {
	if err := p.Identity.Validate(); err != nil {
		return nil, nil, err
	}
	if p.Identity.Kind == KindLocal {
		return nil, nil, fmt.Errorf("%w: a local caller needs no certificate", pod.ErrInvalid)
	}
	r, err := x509.ParseCertificateRequest(request)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: certificate request: %w", pod.ErrInvalid, err)
	}
	if err := r.CheckSignature(); err != nil {
		return nil, nil, fmt.Errorf("%w: certificate request: %w", pod.ErrInvalid, err)
	}
	public, ok := r.PublicKey.(ed25519.PublicKey)
	if !ok {
		return nil, nil, fmt.Errorf("%w: certificate request: want an ed25519 key, not %s", pod.ErrInvalid, r.PublicKeyAlgorithm)
	}
	usage := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	lifetime := UserLifetime
	if p.Identity.Kind.Daemon() {
		usage = append(usage, x509.ExtKeyUsageServerAuth)
		lifetime = DaemonLifetime
	}
	if p.Lifetime != 0 {
		lifetime = max(p.Lifetime, MinLifetime)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, nil, err
	}
	now := time.Now()
	end := now.Add(lifetime)
	if end.After(a.certificate.NotAfter) {
		end = a.certificate.NotAfter
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: p.Identity.Key()},
		NotBefore:    now.Add(-clockSkew),
		NotAfter:     end,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  usage,
		DNSNames:     p.Identity.dnsNames(p.Directory),
	}
	for _, address := range p.Addresses {
		template.IPAddresses = append(template.IPAddresses, address.AsSlice())
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, public, a.key)
	if err != nil {
		return nil, nil, fmt.Errorf("issuing a certificate to %s: %w", p.Identity, err)
	}
	if leaf, err = x509.ParseCertificate(der); err != nil {
		return nil, nil, fmt.Errorf("issuing a certificate to %s: %w", p.Identity, err)
	}
	return encodeChain(leaf, a.certificate), leaf, nil
}

// NewRequest makes a certificate request (PKCS #10, DER) that proves possession
// of key.
func NewRequest(key ed25519.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate request: %w", err)
	}
	return der, nil
}
