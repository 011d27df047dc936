package archive

import (
	"fmt"
	"io"

	"filippo.io/age"
)

// Reseal encrypts the body of a file anew, for other recipients. The clear part
// and so the signature stay as they are. What is read is not verified.
func Reseal(w io.Writer, body io.Reader, identities []age.Identity, recipients ...age.Recipient) error {
	plain, err := decrypt(body, identities)
	if err != nil {
		return fmt.Errorf("encrypting a checkpoint file anew: %w", err)
	}
	encrypted, err := age.Encrypt(w, recipients...)
	if err != nil {
		return fmt.Errorf("encrypting a checkpoint file anew: %w", err)
	}
	if _, err := io.Copy(encrypted, plain); err != nil {
		return fmt.Errorf("encrypting a checkpoint file anew: %w", err)
	}
	if err := encrypted.Close(); err != nil {
		return fmt.Errorf("encrypting a checkpoint file anew: %w", err)
	}
	return nil
}

// Recipients reads age public keys ("age1...").
func Recipients(keys ...string) ([]age.Recipient, error) {
	var recipients []age.Recipient
	for _, key := range keys {
		r, err := age.ParseX25519Recipient(key)
		if err != nil {
			return nil, fmt.Errorf("recipient %q: %w", key, err)
		}
		recipients = append(recipients, r)
	}
	return recipients, nil
}
