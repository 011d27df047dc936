package archive

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// zstdWindow bounds how much memory a decoder needs, in bytes.
const zstdWindow = 4 << 20

// Signer signs files.
type Signer struct {
	Key ed25519.PrivateKey
	// Chain is the certificate of Key and those that certify it, in PEM.
	Chain []byte
}

// Source is the content of one member.
type Source struct {
	Member
	// Open begins to read the content.
	Open func() (io.ReadCloser, error)
}

// Measure reads a member's content to its end and describes it.
func Measure(name string, open func() (io.ReadCloser, error)) (Source, error) {
	s := Source{Member: Member{Name: name}, Open: open}
	r, err := open()
	if err != nil {
		return s, fmt.Errorf("measuring member %s: %w", name, err)
	}
	defer r.Close()
	hash := sha256.New()
	if s.Size, err = io.Copy(hash, r); err != nil {
		return s, fmt.Errorf("measuring member %s: %w", name, err)
	}
	s.SHA256 = hex.EncodeToString(hash.Sum(nil))
	return s, nil
}

// Write writes a file: the header, whose Members it fills in, signed, and the
// content, encrypted to the recipients. It reads every source once.
func Write(w io.Writer, header Header, sources []Source, signer Signer, recipients ...age.Recipient) error {
	if len(recipients) == 0 {
		return errors.New("writing a checkpoint file: no recipient")
	}
	header.Members = nil
	for _, s := range sources {
		header.Members = append(header.Members, s.Member)
	}
	clear, err := seal(header, signer)
	if err != nil {
		return fmt.Errorf("writing a checkpoint file: %w", err)
	}
	if _, err := w.Write(clear); err != nil {
		return fmt.Errorf("writing a checkpoint file: %w", err)
	}
	if err := writeBody(w, sources, recipients); err != nil {
		return fmt.Errorf("writing a checkpoint file: %w", err)
	}
	return nil
}

// seal is everything before the body.
func seal(header Header, signer Signer) ([]byte, error) {
	data, err := header.encode()
	if err != nil {
		return nil, err
	}
	if len(signer.Chain) == 0 || len(signer.Chain) > maxChain {
		return nil, fmt.Errorf("a certificate chain of %d bytes", len(signer.Chain))
	}
	clear := append([]byte(magic), version)
	clear = binary.BigEndian.AppendUint32(clear, uint32(len(data)))
	clear = append(clear, data...)
	clear = binary.BigEndian.AppendUint32(clear, uint32(len(signer.Chain)))
	clear = append(clear, signer.Chain...)
	return append(clear, ed25519.Sign(signer.Key, clear)...), nil
}

func writeBody(w io.Writer, sources []Source, recipients []age.Recipient) error {
	encrypted, err := age.Encrypt(w, recipients...)
	if err != nil {
		return fmt.Errorf("encrypting: %w", err)
	}
	compressed, err := zstd.NewWriter(encrypted, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithWindowSize(zstdWindow))
	if err != nil {
		return err
	}
	for _, s := range sources {
		if err := s.copyTo(compressed); err != nil {
			compressed.Close() // frees its memory; the file is no good anyway
			return err
		}
	}
	if err := compressed.Close(); err != nil {
		return err
	}
	return encrypted.Close()
}

// copyTo writes the content, which must be what was described.
func (s *Source) copyTo(w io.Writer) error {
	r, err := s.Open()
	if err != nil {
		return fmt.Errorf("member %s: %w", s.Name, err)
	}
	defer r.Close()
	hash := sha256.New()
	n, err := io.Copy(w, io.TeeReader(io.LimitReader(r, s.Size), hash))
	if err != nil {
		return fmt.Errorf("member %s: %w", s.Name, err)
	}
	if n != s.Size || hex.EncodeToString(hash.Sum(nil)) != s.SHA256 {
		return fmt.Errorf("member %s has changed while it was written", s.Name)
	}
	return nil
}
