package checkpoint

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"sort"

	"podd/reserve"
)

// The image stream carries the files of a directory:
//
//	8 bytes "PODDIMG1"
//	u32     size of the manifest, big-endian
//	        manifest, JSON: {"files":[{"name":..,"size":..,"sha256":..},...]}
//	        the files' contents, in that order, nothing between them
//
// The manifest comes first so that the receiver can refuse what is too much
// before it wrote a byte.
const imageStreamMagic = "PODDIMG1"

// maxManifest bounds the manifest. An entry is about 130 bytes.
const maxManifest = 16 << 20

// imageStep is how much of an image is written between two looks at what space is
// left, in bytes.
const imageStep = 4 << 20

// imageName is what CRIU's image files are called. Only such files are sent
// and received: no directories, no hidden files, no logs.
var imageName = regexp.MustCompile(`^[a-zA-Z][a-zA-Z0-9_.-]{0,99}\.img$`)

// ErrCorrupt means that a file is not what its manifest says.
var ErrCorrupt = errors.New("image is corrupt")

// ImageLimits bound what ReceiveImages takes from a peer.
type ImageLimits struct {
	// Bytes is the most that all files may have together.
	Bytes int64
	// Files is how many there may be.
	Files int
}

// ImageStats counts what an image stream carried.
type ImageStats struct {
	Files int
	// Bytes is the size of the files together.
	Bytes int64
}

type manifest struct {
	Files []manifestFile `json:"files"`
}

type manifestFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// SendImages writes the image files in dir to w. It does not end before all
// are sent or w fails.
func SendImages(w io.Writer, dir string) (ImageStats, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return ImageStats{}, fmt.Errorf("opening images directory: %w", err)
	}
	defer root.Close()
	stats, err := sendImages(w, root)
	if err != nil {
		return stats, fmt.Errorf("sending images: %w", err)
	}
	return stats, nil
}

func sendImages(w io.Writer, root *os.Root) (ImageStats, error) {
	m, err := makeManifest(root)
	if err != nil {
		return ImageStats{}, err
	}
	b, err := json.Marshal(m)
	if err != nil {
		return ImageStats{}, err
	}
	if len(b) > maxManifest {
		return ImageStats{}, fmt.Errorf("%w: a manifest of %d bytes", ErrLimit, len(b))
	}
	head := append([]byte(imageStreamMagic), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(head[len(imageStreamMagic):], uint32(len(b)))
	if _, err := w.Write(append(head, b...)); err != nil {
		return ImageStats{}, err
	}
	var stats ImageStats
	for _, f := range m.Files {
		if err := sendFile(w, root, f); err != nil {
			return stats, err
		}
		stats.Files++
		stats.Bytes += f.Size
	}
	return stats, nil
}

func makeManifest(root *os.Root) (manifest, error) {
	m := manifest{Files: []manifestFile{}}
	d, err := root.Open(".")
	if err != nil {
		return m, err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return m, err
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].Name() < entries[j].Name() })
	for _, e := range entries {
		if !e.Type().IsRegular() || !imageName.MatchString(e.Name()) {
			continue
		}
		f, err := describe(root, e.Name())
		if err != nil {
			return m, err
		}
		m.Files = append(m.Files, f)
	}
	return m, nil
}

func describe(root *os.Root, name string) (manifestFile, error) {
	f, err := root.Open(name)
	if err != nil {
		return manifestFile{}, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err != nil {
		return manifestFile{}, err
	}
	return manifestFile{Name: name, Size: n, SHA256: hex.EncodeToString(h.Sum(nil))}, nil
}

func sendFile(w io.Writer, root *os.Root, file manifestFile) error {
	f, err := root.Open(file.Name)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.CopyN(w, f, file.Size); err != nil {
		return fmt.Errorf("%s: %w", file.Name, noEOF(err))
	}
	return nil
}

// ReceiveImages reads an image stream from r, nothing of which is trusted, and
// writes the files to dir. It reads exactly the stream and nothing that
// follows it. A file whose digest is not that of the manifest fails with
// ErrCorrupt. On an error the files written so far stay: the caller removes
// the directory. For ctx see ReceivePages.
func ReceiveImages(ctx context.Context, r io.Reader, dir string, limits ImageLimits) (ImageStats, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return ImageStats{}, fmt.Errorf("opening images directory: %w", err)
	}
	defer root.Close()
	defer interruptible(ctx, r)()
	stats, err := receiveImages(ctx, r, root, limits)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return stats, fmt.Errorf("receiving images: %w", err)
	}
	return stats, nil
}

func receiveImages(ctx context.Context, r io.Reader, root *os.Root, limits ImageLimits) (ImageStats, error) {
	var stats ImageStats
	m, err := readManifest(r)
	if err != nil {
		return stats, err
	}
	if err := m.check(limits); err != nil {
		return stats, err
	}
	var room reserve.Meter
	for _, f := range m.Files {
		if err := ctx.Err(); err != nil {
			return stats, err
		}
		if err := receiveFile(r, root, f, &room); err != nil {
			return stats, fmt.Errorf("%s: %w", f.Name, err)
		}
		stats.Files++
		stats.Bytes += f.Size
	}
	return stats, nil
}

func readManifest(r io.Reader) (manifest, error) {
	var m manifest
	head := make([]byte, len(imageStreamMagic)+4)
	if _, err := io.ReadFull(r, head); err != nil {
		return m, noEOF(err)
	}
	if string(head[:len(imageStreamMagic)]) != imageStreamMagic {
		return m, fmt.Errorf("%w: it does not begin with %q", ErrCorrupt, imageStreamMagic)
	}
	size := binary.BigEndian.Uint32(head[len(imageStreamMagic):])
	if size > maxManifest {
		return m, fmt.Errorf("%w: a manifest of %d bytes", ErrLimit, size)
	}
	// Not allocated before it arrives.
	b, err := io.ReadAll(io.LimitReader(r, int64(size)))
	if err != nil {
		return m, err
	}
	if len(b) < int(size) {
		return m, io.ErrUnexpectedEOF
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, fmt.Errorf("%w: manifest: %w", ErrCorrupt, err)
	}
	return m, nil
}

func (m manifest) check(limits ImageLimits) error {
	if len(m.Files) > limits.Files {
		return fmt.Errorf("%w: %d image files, at most %d are allowed", ErrLimit, len(m.Files), limits.Files)
	}
	left := limits.Bytes
	for _, f := range m.Files {
		if !imageName.MatchString(f.Name) {
			return fmt.Errorf("%w: file name %q is not allowed", ErrCorrupt, f.Name)
		}
		if f.Size < 0 {
			return fmt.Errorf("%w: %s has size %d", ErrCorrupt, f.Name, f.Size)
		}
		if f.Size > left {
			return fmt.Errorf("%w: image files of more than %d bytes", ErrLimit, limits.Bytes)
		}
		left -= f.Size
	}
	return nil
}

func receiveFile(r io.Reader, root *os.Root, file manifestFile, room *reserve.Meter) (err error) {
	f, err := root.OpenFile(file.Name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	h := sha256.New()
	files := int64(1)
	for left := file.Size; ; {
		n := min(left, imageStep)
		if err := room.Add(int(f.Fd()), n, files); err != nil {
			return fmt.Errorf("%w: %w", ErrLimit, err)
		}
		if _, err := io.CopyN(io.MultiWriter(f, h), r, n); err != nil {
			return noEOF(err)
		}
		if left, files = left-n, 0; left == 0 {
			break
		}
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != file.SHA256 {
		return fmt.Errorf("%w: its digest is %s, not %s", ErrCorrupt, got, file.SHA256)
	}
	return nil
}
