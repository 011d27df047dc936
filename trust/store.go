package trust

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"filippo.io/age"
	"github.com/google/renameio/v2"

	"podd/pod"
)

const (
	authorityFile    = "authority.pem"
	authorityKeyFile = "authority-key.pem"
	certificateFile  = "certificate.pem"
	keyFile          = "key.pem"
	clusterFile      = "cluster.json"
	secretFile       = "cluster.age"
)

// Dir is where a daemon with that state directory keeps its credentials.
func Dir(stateDir string) string { return filepath.Join(stateDir, "trust") }

// ErrNoMember means that a directory holds no credentials. It wraps
// pod.ErrNotFound.
var ErrNoMember = fmt.Errorf("%w: no credentials: this machine belongs to no cluster yet", pod.ErrNotFound)

// ClusterInfo is what a member remembers about its cluster.
type ClusterInfo struct {
	// Directory is the directory's URLs, with commas between, or "embedded"
	// where this member serves it; empty for users.
	Directory string `json:"directory,omitempty"`
	// Issuers are the API addresses of the daemons that have the authority.
	Issuers []string `json:"issuers,omitempty"`
}

// Store is the credentials of one member: a daemon, or a user. It is safe for
// concurrent use.
type Store struct {
	dir       string
	key       ed25519.PrivateKey
	authority *x509.Certificate
	roots     *x509.CertPool
	secret    *age.X25519Identity // nil for users
	issuer    bool

	mu       sync.RWMutex
	identity Identity
	chain    []*x509.Certificate
	info     ClusterInfo
	revoked  func(serial string) bool
}

// Membership is what somebody who has joined a cluster was given.
type Membership struct {
	Key ed25519.PrivateKey
	// Chain and Authority are certificates in PEM.
	Chain, Authority []byte
	// Secret is the cluster's key for encrypted files, in age's text form;
	// empty where it is not needed.
	Secret string
	Info   ClusterInfo
}

// InitOptions describe the first member of a new cluster, which is its issuer.
type InitOptions struct {
	Identity Identity
	// Addresses and Lifetime are as in Profile.
	Addresses []netip.Addr
	Lifetime  time.Duration
	Info      ClusterInfo
}

// Init makes a cluster: its authority, the key of its files, and the
// credentials of its first member. The error wraps pod.ErrExists when dir has
// credentials already.
func Init(dir string, o InitOptions) (*Store, error) {
	if !o.Identity.Kind.Daemon() {
		return nil, fmt.Errorf("%w: a cluster begins with a proxy or a host, not with a %s", pod.ErrInvalid, o.Identity.Kind)
	}
	authority, err := newAuthority()
	if err != nil {
		return nil, err
	}
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	secret, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("making the key of checkpoint files: %w", err)
	}
	request, err := NewRequest(key)
	if err != nil {
		return nil, err
	}
	chain, _, err := authority.Issue(request, Profile{
		Identity: o.Identity, Addresses: o.Addresses, Directory: o.Info.Directory == Embedded, Lifetime: o.Lifetime,
	})
	if err != nil {
		return nil, err
	}
	authorityKey, err := encodeKey(authority.key)
	if err != nil {
		return nil, err
	}
	return create(dir, Membership{
		Key: key, Chain: chain, Authority: encodeChain(authority.certificate), Secret: secret.String(), Info: o.Info,
	}, map[string][]byte{authorityKeyFile: authorityKey})
}

// Embedded as ClusterInfo.Directory says that the member serves it itself.
const Embedded = "embedded"

// Create stores the credentials of a new member in dir. The error wraps
// pod.ErrExists when there are some, pod.ErrUntrusted when they do not fit
// together.
func Create(dir string, m Membership) (*Store, error) { return create(dir, m, nil) }

func create(dir string, m Membership, more map[string][]byte) (*Store, error) {
	if _, err := os.Lstat(dir); err == nil {
		return nil, fmt.Errorf("%w: %s holds the credentials of a member of a cluster; remove it first if that cluster is of no more use", pod.ErrExists, dir)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("storing credentials: %w", err)
	}
	key, err := encodeKey(m.Key)
	if err != nil {
		return nil, err
	}
	info, err := json.MarshalIndent(m.Info, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encoding what is known of the cluster: %w", err)
	}
	files := map[string][]byte{authorityFile: m.Authority, certificateFile: m.Chain, keyFile: key, clusterFile: append(info, '\n')}
	if m.Secret != "" {
		files[secretFile] = []byte(m.Secret + "\n")
	}
	for name, data := range more {
		files[name] = data
	}
	// All or nothing: the directory gets its name when everything is in it
	// and has been checked.
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, fmt.Errorf("storing credentials: %w", err)
	}
	building, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+"-")
	if err != nil {
		return nil, fmt.Errorf("storing credentials: %w", err)
	}
	defer os.RemoveAll(building) // gone when all went well
	for name, data := range files {
		if err := writeFile(filepath.Join(building, name), data); err != nil {
			return nil, err
		}
	}
	if _, err := Open(building); err != nil {
		return nil, err
	}
	if err := os.Rename(building, dir); err != nil {
		return nil, fmt.Errorf("storing credentials: %w", err)
	}
	return Open(dir)
}

// writeFile replaces a file in one step; it is on disk before it has its name.
func writeFile(path string, data []byte) error {
	if err := renameio.WriteFile(path, data, 0o600, renameio.IgnoreUmask()); err != nil {
		return fmt.Errorf("storing credentials: %w", err)
	}
	return nil
}

// Open reads the credentials in dir. The error wraps ErrNoMember when there are
// none and pod.ErrUntrusted when others may read the keys or something does not
// fit. An expired certificate is no error here: it can be looked at, and joining
// anew replaces it.
func Open(dir string) (*Store, error) {
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w (%s)", ErrNoMember, dir)
	}
	if err := checkPrivate(dir); err != nil {
		return nil, err
	}
	s := &Store{dir: dir, revoked: func(string) bool { return false }}
	var err error
	if s.key, err = readKey(filepath.Join(dir, keyFile)); err != nil {
		return nil, err
	}
	if err := s.readAuthority(); err != nil {
		return nil, err
	}
	chain, err := os.ReadFile(filepath.Join(dir, certificateFile))
	if err != nil {
		return nil, fmt.Errorf("reading credentials: %w", err)
	}
	if s.identity, s.chain, err = s.checkOwn(chain); err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, certificateFile), err)
	}
	info, err := os.ReadFile(filepath.Join(dir, clusterFile))
	if err == nil {
		err = json.Unmarshal(info, &s.info)
	}
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(dir, clusterFile), err)
	}
	return s, s.readSecret()
}

func (s *Store) readAuthority() error {
	path := filepath.Join(s.dir, authorityFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("reading credentials: %w", err)
	}
	certificates, err := parseChain(data)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	s.authority = certificates[0]
	if !s.authority.IsCA {
		return fmt.Errorf("%w: %s is no authority's", pod.ErrUntrusted, path)
	}
	s.roots = x509.NewCertPool()
	s.roots.AddCert(s.authority)
	err = checkPrivate(filepath.Join(s.dir, authorityKeyFile))
	s.issuer = err == nil
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (s *Store) readSecret() error {
	path := filepath.Join(s.dir, secretFile)
	data, err := readSecret(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if s.secret, err = parseSecret(data); err != nil {
		return fmt.Errorf("%w: %s: %w", pod.ErrUntrusted, path, err)
	}
	return nil
}

// checkOwn reads a chain and makes sure that it is for this member's key and
// from its authority.
func (s *Store) checkOwn(data []byte) (Identity, []*x509.Certificate, error) {
	chain, err := parseChain(data)
	if err != nil {
		return Identity{}, nil, err
	}
	// Whether it is good now is another question.
	identity, leaf, err := s.verify(chain, chain[0].NotAfter)
	if err != nil {
		return Identity{}, nil, err
	}
	if !s.key.Public().(ed25519.PublicKey).Equal(leaf.PublicKey) {
		return Identity{}, nil, fmt.Errorf("%w: the certificate is for another key", pod.ErrUntrusted)
	}
	return identity, chain, nil
}

// verify checks a chain against the cluster's authority.
func (s *Store) verify(chain []*x509.Certificate, at time.Time) (Identity, *x509.Certificate, error) {
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: s.roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return Identity{}, nil, fmt.Errorf("%w: %w", pod.ErrUntrusted, err)
	}
	identity, err := FromCertificate(chain[0])
	return identity, chain[0], err
}

// VerifyChain checks a chain in PEM against the cluster's authority, as of the
// given time, and against what was revoked. It is for signatures on things that
// were stored. The error wraps pod.ErrUntrusted.
func (s *Store) VerifyChain(chainPEM []byte, at time.Time) (Identity, *x509.Certificate, error) {
	chain, err := parseChain(chainPEM)
	if err != nil {
		return Identity{}, nil, err
	}
	identity, leaf, err := s.verify(chain, at)
	if err != nil {
		return Identity{}, nil, err
	}
	if s.isRevoked(leaf) {
		return Identity{}, nil, fmt.Errorf("%w: the certificate of %s was revoked", pod.ErrUntrusted, identity)
	}
	return identity, leaf, nil
}

// Replace puts a renewed certificate, a chain in PEM, in place of the present
// one. The error wraps pod.ErrUntrusted when it is not for the same key.
func (s *Store) Replace(chainPEM []byte) error {
	identity, chain, err := s.checkOwn(chainPEM)
	if err != nil {
		return fmt.Errorf("replacing the certificate: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if identity.Key() != s.identity.Key() {
		return fmt.Errorf("replacing the certificate: %w: it is %s's, not %s's", pod.ErrUntrusted, identity, s.identity)
	}
	if err := writeFile(filepath.Join(s.dir, certificateFile), chainPEM); err != nil {
		return err
	}
	s.identity, s.chain = identity, chain
	return nil
}

// SetInfo remembers something new about the cluster.
func (s *Store) SetInfo(info ClusterInfo) error {
	data, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return fmt.Errorf("encoding what is known of the cluster: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := writeFile(filepath.Join(s.dir, clusterFile), append(data, '\n')); err != nil {
		return err
	}
	s.info = info
	return nil
}

// Dir is the directory that the credentials are in.
func (s *Store) Dir() string { return s.dir }

// Paths are the files of the certificate, its key and the authority, for
// programs that read them themselves. Replace changes the first.
func (s *Store) Paths() (certificate, key, authority string) {
	return filepath.Join(s.dir, certificateFile), filepath.Join(s.dir, keyFile), filepath.Join(s.dir, authorityFile)
}

// Identity is who this member is.
func (s *Store) Identity() Identity {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.identity
}

// Leaf is the member's present certificate.
func (s *Store) Leaf() *x509.Certificate {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.chain[0]
}

// Chain is the member's certificate and the authority's, in PEM.
func (s *Store) Chain() []byte {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return encodeChain(s.chain...)
}

// Key is the member's private key.
func (s *Store) Key() ed25519.PrivateKey { return s.key }

// AuthorityPEM is the authority's certificate.
func (s *Store) AuthorityPEM() []byte { return encodeChain(s.authority) }

// Fingerprint is the SHA-256 of the authority's certificate, in hexadecimal.
func (s *Store) Fingerprint() string { return fingerprint(s.authority) }

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// Roots has the cluster's authority.
func (s *Store) Roots() *x509.CertPool { return s.roots }

// IsIssuer reports whether this member has the authority's key.
func (s *Store) IsIssuer() bool { return s.issuer }

// Info is what is known about the cluster.
func (s *Store) Info() ClusterInfo {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.info
}

// RenewAt is when the certificate should be replaced: a daemon's after a third
// of its life, so that its issuer may be away for long; a user's after half.
func (s *Store) RenewAt() time.Time {
	leaf := s.Leaf()
	begin := leaf.NotBefore.Add(clockSkew)
	part := time.Duration(3)
	if s.Identity().Kind == KindUser {
		part = 2
	}
	return begin.Add(leaf.NotAfter.Sub(begin) / part)
}
