package trust

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// maxChain bounds how many certificates a chain has: the member's and the CA's,
// and room for a day when there is one in between.
const maxChain = 4

// encodeChain writes certificates in PEM (RFC 7468).
func encodeChain(certificates ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certificates {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

// parseChain reads certificates in PEM, at least one. The error wraps
// pod.ErrUntrusted.
func parseChain(data []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for len(out) < maxChain {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%w: a %q among the certificates", pod.ErrUntrusted, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d: %w", pod.ErrUntrusted, len(out)+1, err)
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: no certificate in it", pod.ErrUntrusted)
	}
	return out, nil
}

func encodeKey(key ed25519.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// readKey reads a key that nobody else may read.
func readKey(path string) (ed25519.PrivateKey, error) {
	data, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%w: %s: no key in it", pod.ErrUntrusted, path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", pod.ErrUntrusted, path, err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%w: %s: want an ed25519 key", pod.ErrUntrusted, path)
	}
	return key, nil
}

// readSecret reads a file that nobody else may read. The error wraps
// pod.ErrUntrusted when others may.
func readSecret(path string) ([]byte, error) {
	if err := checkPrivate(path); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading a secret: %w", err)
	}
	return data, nil
}

// checkPrivate makes sure that only this process's user can get at path.
func checkPrivate(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fmt.Errorf("looking at %s: %w", path, err)
	}
	want := uint32(0o600)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		want = 0o700
	case unix.S_IFREG:
	default:
		return fmt.Errorf("%w: %s is neither a file nor a directory", pod.ErrUntrusted, path)
	}
	if st.Mode&0o077 != 0 {
		return fmt.Errorf("%w: others may open %s, which holds keys: chmod %o %s; if somebody else may have read it, replace the keys", pod.ErrUntrusted, path, want, path)
	}
	if uid := os.Geteuid(); uid != 0 && int(st.Uid) != uid {
		return fmt.Errorf("%w: %s, which holds keys, belongs to user %d: chown %d %s", pod.ErrUntrusted, path, st.Uid, uid, path)
	}
	return nil
}
