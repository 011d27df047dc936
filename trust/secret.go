package trust

import (
	"strings"

	"filippo.io/age"
)

func parseSecret(data []byte) (*age.X25519Identity, error) {
	return age.ParseX25519Identity(strings.TrimSpace(string(data)))
}

// Secret is the key that decrypts the cluster's checkpoint files; nil where
// this member does not have it.
func (s *Store) Secret() *age.X25519Identity { return s.secret }

// Recipient is the public key, in age's text form, that checkpoint files are
// encrypted to; empty where this member does not know it.
func (s *Store) Recipient() string {
	if s.secret == nil {
		return ""
	}
	return s.secret.Recipient().String()
}
