package image

import (
	"fmt"
	"hash"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"podd/pod"
)

// progressStep is how many bytes pass between two reports of progress.
const progressStep = 4 << 20

// verifier computes the digest of what is read through it.
type verifier struct {
	r    io.Reader
	hash hash.Hash // nil if no digest is known
	want v1.Hash
	// size is what must have been read in the end, -1 if unknown.
	size, read int64
	progress   func(int64)
	reported   int64
}

func newVerifier(r io.Reader, want v1.Hash, size int64) (*verifier, error) {
	v := &verifier{r: r, want: want, size: size}
	if want != (v1.Hash{}) {
		h, err := v1.Hasher(want.Algorithm)
		if err != nil {
			return nil, fmt.Errorf("%w: digest %q: %w", pod.ErrInvalid, want, err)
		}
		v.hash = h
	}
	return v, nil
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.read += int64(n)
	if v.hash != nil {
		v.hash.Write(p[:n])
	}
	if v.size >= 0 && v.read > v.size {
		return 0, fmt.Errorf("%w: blob %s has more than the %d bytes its descriptor says", pod.ErrInvalid, v.want, v.size)
	}
	if v.progress != nil && (v.read-v.reported >= progressStep || err == io.EOF) {
		v.reported = v.read
		v.progress(v.read)
	}
	return n, err
}

// verify reports whether everything that was read is what was promised.
func (v *verifier) verify(what string) error {
	if v.size >= 0 && v.read != v.size {
		return fmt.Errorf("%w: %s %s has %d bytes, its descriptor says %d", pod.ErrInvalid, what, v.want, v.read, v.size)
	}
	if v.hash == nil {
		return nil
	}
	if got := fmt.Sprintf("%x", v.hash.Sum(nil)); got != v.want.Hex {
		return fmt.Errorf("%w: %s %s is damaged: it has the digest %s:%s", pod.ErrInvalid, what, v.want, v.want.Algorithm, got)
	}
	return nil
}
