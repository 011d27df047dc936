package trust

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"podd/pod"
)

const (
	// tokenPrefix says what the text is, to people and to secret scanners.
	tokenPrefix = "podd1."
	// maxToken bounds a token's text, in bytes.
	maxToken = 4096
	// secretSize is that of a token's secret, in bytes.
	secretSize = 16
	// TokenLifetime is how long a token waits to be used unless something
	// else is asked.
	TokenLifetime = time.Hour
)

// Token admits one daemon or one user to a cluster, once. Its holder needs
// nothing else.
type Token struct {
	// Addresses are API addresses (ADDRESS:PORT) of the issuers.
	Addresses []string `json:"a"`
	// Fingerprint is the SHA-256 of the authority's certificate, in
	// hexadecimal: by it the joiner knows the cluster.
	Fingerprint string `json:"f"`
	// ID names the token, Secret proves it.
	ID     string `json:"i"`
	Secret []byte `json:"s"`
}

// NewToken makes a token for this member's cluster with a new secret.
func (s *Store) NewToken(addresses []string) (Token, error) {
	t := Token{Addresses: addresses, Fingerprint: s.Fingerprint(), Secret: make([]byte, secretSize)}
	t.ID = strings.ToLower(rand.Text()[:8])
	_, err := rand.Read(t.Secret)
	return t, err
}

// SecretHash is what an issuer knows a secret by: it is random and long, so a
// plain SHA-256 does.
func SecretHash(secret []byte) string {
	sum := sha256.Sum256(secret)
	return hex.EncodeToString(sum[:])
}

// String is the text form.
func (t Token) String() string {
	data, err := json.Marshal(t)
	if err != nil {
		panic(fmt.Sprintf("encoding a token: %v", err)) // it has nothing that can fail
	}
	return tokenPrefix + base64.RawURLEncoding.EncodeToString(data)
}

// ParseToken is the reverse of String. The error wraps pod.ErrInvalid and does
// not quote the text.
func ParseToken(text string) (Token, error) {
	var t Token
	bad := func(what string) (Token, error) {
		return Token{}, fmt.Errorf("%w: token: %s: copy the whole line that podctl cluster join-token or user-token printed", pod.ErrInvalid, what)
	}
	text = strings.TrimSpace(text)
	encoded, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		return bad("it does not begin with " + tokenPrefix)
	}
	if len(text) > maxToken {
		return bad("it is too long")
	}
	data, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		return bad("it is damaged")
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&t); err != nil || decoder.More() {
		return bad("it is damaged")
	}
	sum, err := hex.DecodeString(t.Fingerprint)
	if err != nil || len(sum) != sha256.Size || len(t.Secret) != secretSize || pod.ValidateName(t.ID) != nil || len(t.Addresses) == 0 {
		return bad("it is damaged")
	}
	for _, address := range t.Addresses {
		if _, err := netip.ParseAddrPort(address); err != nil {
			return bad("it is damaged")
		}
	}
	return t, nil
}

// ReadToken reads a token as it is given on a command line: the text itself,
// @FILE, or - for stdin. The error wraps pod.ErrInvalid or is the file's.
func ReadToken(argument string, stdin io.Reader) (Token, error) {
	switch path, isFile := strings.CutPrefix(argument, "@"); {
	case isFile:
		f, err := os.Open(path)
		if err != nil {
			return Token{}, fmt.Errorf("reading the token: %w", err)
		}
		defer f.Close()
		return readToken(f)
	case argument == "-":
		return readToken(stdin)
	}
	return ParseToken(argument)
}

func readToken(r io.Reader) (Token, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxToken+2)) // a line's end, and one to notice more
	if err != nil {
		return Token{}, fmt.Errorf("reading the token: %w", err)
	}
	return ParseToken(string(data))
}

// TLS is for the connection on which the token is used: the server must be a
// daemon of the cluster with the token's fingerprint.
func (t Token) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The authority is not known yet but for its fingerprint, so the
		// verification is done below instead.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			authority := find(state.PeerCertificates, t.Fingerprint)
			if authority == nil {
				return fmt.Errorf("%w: the server is not of the cluster that the token is for", pod.ErrUntrusted)
			}
			roots := x509.NewCertPool()
			roots.AddCert(authority)
			if _, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, DNSName: DaemonName}); err != nil {
				return fmt.Errorf("%w: %w", pod.ErrUntrusted, err)
			}
			return nil
		},
	}
}

// Matches reports whether the authority's certificate, in PEM, is the one the
// token is for.
func (t Token) Matches(authority []byte) bool {
	chain, err := parseChain(authority)
	return err == nil && find(chain[:1], t.Fingerprint) != nil
}

func find(certificates []*x509.Certificate, sum string) *x509.Certificate {
	for _, c := range certificates {
		if c.IsCA && fingerprint(c) == sum {
			return c
		}
	}
	return nil
}
