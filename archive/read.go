package archive

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"time"

	"filippo.io/age"
	"github.com/klauspost/compress/zstd"
)

// Envelope is the clear part of a file as it was read.
type Envelope struct {
	Header Header
	// Chain is the signer's certificate chain, in PEM.
	Chain []byte
	raw   []byte
}

// ReadEnvelope reads the clear part of a file from r and not further. Nothing
// in it is to be believed before Verify. Errors wrap ErrFormat or ErrVersion
// where the file is to blame.
func ReadEnvelope(r io.Reader) (*Envelope, error) {
	e, err := readEnvelope(r)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("%w: it ends in the middle", ErrFormat)
	}
	if err != nil {
		return nil, fmt.Errorf("reading a checkpoint file: %w", err)
	}
	return e, nil
}

func readEnvelope(r io.Reader) (*Envelope, error) {
	e := new(Envelope)
	begin, err := e.take(r, len(magic)+1)
	if err != nil {
		return nil, err
	}
	if string(begin[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: it does not begin with %q", ErrFormat, magic)
	}
	if v := begin[len(magic)]; v != version {
		return nil, fmt.Errorf("%w: it has version %d, this program reads version %d", ErrVersion, v, version)
	}
	header, err := e.section(r, "header", maxHeader)
	if err != nil {
		return nil, err
	}
	decoded, err := decodeHeader(header)
	if err != nil {
		return nil, err
	}
	e.Header = *decoded
	if e.Chain, err = e.section(r, "certificate chain", maxChain); err != nil {
		return nil, err
	}
	_, err = e.take(r, ed25519.SignatureSize)
	return e, err
}

// section reads a size and as many bytes.
func (e *Envelope) section(r io.Reader, what string, limit uint32) ([]byte, error) {
	size, err := e.take(r, 4)
	if err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size)
	if n == 0 || n > limit {
		return nil, fmt.Errorf("%w: a %s of %d bytes", ErrFormat, what, n)
	}
	return e.take(r, int(n))
}

// take reads n bytes, which are bounded, and keeps them.
func (e *Envelope) take(r io.Reader, n int) ([]byte, error) {
	at := len(e.raw)
	e.raw = append(e.raw, make([]byte, n)...)
	_, err := io.ReadFull(r, e.raw[at:])
	return e.raw[at : at+n : at+n], err
}

// Bytes is the clear part, as it was read.
func (e *Envelope) Bytes() []byte { return e.raw }

// VerifyChain verifies a certificate chain, in PEM, as of a time, and returns
// its first certificate.
type VerifyChain func(chain []byte, at time.Time) (*x509.Certificate, error)

// Verify reports whether the holder of a certificate that verify accepts has
// signed the file. Errors wrap ErrSignature.
func (e *Envelope) Verify(verify VerifyChain) error {
	leaf, err := verify(e.Chain, e.Header.CreatedAt)
	if err != nil {
		return fmt.Errorf("%w: its signer: %w", ErrSignature, err)
	}
	key, ok := leaf.PublicKey.(ed25519.PublicKey)
	signed := len(e.raw) - ed25519.SignatureSize
	if !ok || !ed25519.Verify(key, e.raw[:signed], e.raw[signed:]) {
		return ErrSignature
	}
	return nil
}

// Reader reads the members of a file, one after the other.
type Reader struct {
	body    *zstd.Decoder
	members []Member
	current *memberReader
}

// Open begins to read the body of a file whose clear part was read from the
// same stream. Close must be called. The error wraps ErrRecipient if none of
// the identities can decrypt it.
func (e *Envelope) Open(body io.Reader, identities ...age.Identity) (*Reader, error) {
	plain, err := decrypt(body, identities)
	if err != nil {
		return nil, fmt.Errorf("reading a checkpoint file: %w", err)
	}
	decoder, err := zstd.NewReader(plain, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindow))
	if err != nil {
		return nil, fmt.Errorf("reading a checkpoint file: %w", err)
	}
	return &Reader{body: decoder, members: e.Header.Members}, nil
}

func decrypt(body io.Reader, identities []age.Identity) (io.Reader, error) {
	plain, err := age.Decrypt(body, identities...)
	var other *age.NoIdentityMatchError
	if errors.As(err, &other) {
		return nil, ErrRecipient
	}
	if err != nil {
		return nil, fmt.Errorf("%w: decrypting: %w", ErrFormat, err)
	}
	return plain, nil
}

// Close frees what the Reader needs.
func (r *Reader) Close() { r.body.Close() }

// Next reads the current member to its end, if it was not, and begins the
// next. It returns io.EOF when all were read and nothing follows them. Errors
// wrap ErrDigest or ErrFormat where the file is to blame.
func (r *Reader) Next() (Member, io.Reader, error) {
	if r.current != nil {
		if _, err := io.Copy(io.Discard, r.current); err != nil {
			return Member{}, nil, err
		}
		r.current = nil
	}
	if len(r.members) == 0 {
		n, err := io.ReadFull(r.body, make([]byte, 1))
		switch {
		case n > 0:
			return Member{}, nil, fmt.Errorf("%w: there is more than was signed", ErrDigest)
		case err != io.EOF:
			return Member{}, nil, fmt.Errorf("%w: %w", ErrFormat, err)
		}
		return Member{}, nil, io.EOF
	}
	m := r.members[0]
	r.members = r.members[1:]
	r.current = &memberReader{r: r.body, member: m, left: m.Size, hash: sha256.New()}
	return m, r.current, nil
}

// memberReader reads one member and checks it at its end.
type memberReader struct {
	r      io.Reader
	member Member
	left   int64
	hash   hash.Hash
	err    error
}

func (m *memberReader) Read(p []byte) (int, error) {
	if m.err != nil {
		return 0, m.err
	}
	if m.left == 0 {
		m.err = io.EOF
		if hex.EncodeToString(m.hash.Sum(nil)) != m.member.SHA256 {
			m.err = fmt.Errorf("%w: member %s", ErrDigest, m.member.Name)
		}
		return 0, m.err
	}
	n, err := m.r.Read(p[:min(int64(len(p)), m.left)])
	m.hash.Write(p[:n])
	m.left -= int64(n)
	if err != nil && (err != io.EOF || m.left > 0) {
		m.err = fmt.Errorf("%w: member %s: %w", ErrFormat, m.member.Name, noEOF(err))
	}
	return n, m.err
}

// noEOF makes an end in the middle of something an error of its own.
func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Check reads a body from end to end: if it returns nil, all of it is what was
// signed.
func (e *Envelope) Check(body io.Reader, identities ...age.Identity) error {
	r, err := e.Open(body, identities...)
	if err != nil {
		return err
	}
	defer r.Close()
	for {
		if _, _, err := r.Next(); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}
