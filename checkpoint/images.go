package checkpoint

import (
	"bufio"
	"cmp"
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
	"runtime"
	"slices"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

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

// maxImageName is the longest that imageName matches, in bytes.
const maxImageName = 104

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
	files, err := readImages(root)
	if err != nil {
		return ImageStats{}, err
	}
	m := manifest{Files: make([]manifestFile, len(files))}
	for i, f := range files {
		m.Files[i] = f.manifestFile
	}
	b, err := json.Marshal(m)
	if err != nil {
		return ImageStats{}, err
	}
	if len(b) > maxManifest {
		return ImageStats{}, fmt.Errorf("%w: a manifest of %d bytes", ErrLimit, len(b))
	}
	out := bufio.NewWriterSize(w, pageBuffer)
	head := append([]byte(imageStreamMagic), 0, 0, 0, 0)
	binary.BigEndian.PutUint32(head[len(imageStreamMagic):], uint32(len(b)))
	if _, err := out.Write(append(head, b...)); err != nil {
		return ImageStats{}, err
	}
	var stats ImageStats
	for _, f := range files {
		if err := f.send(out, root); err != nil {
			return stats, err
		}
		stats.Files++
		stats.Bytes += f.Size
	}
	return stats, out.Flush()
}

const (
	// smallImage is up to which size a file is handled in one piece, in bytes.
	// Nearly all are of a few hundred.
	smallImage = 1 << 20
	// keptImages bounds what is kept of them between reading and sending.
	keptImages = 64 << 20
)

// imageFile is a file to be sent, with its content if that was kept.
type imageFile struct {
	manifestFile
	content []byte
}

// readImages reads the image files, in order of their names. There are hundreds, and
// the pod is frozen: all processors take part.
func readImages(root *os.Root) ([]imageFile, error) {
	names, err := imageNames(root.Name())
	if err != nil {
		return nil, err
	}
	files := make([]imageFile, len(names))
	for i, name := range names {
		files[i].Name = name
	}
	slices.SortFunc(files, func(a, b imageFile) int { return cmp.Compare(a.Name, b.Name) })
	var next, kept atomic.Int64
	var group errgroup.Group
	for range runtime.GOMAXPROCS(0) {
		group.Go(func() error {
			for {
				i := next.Add(1) - 1
				if i >= int64(len(files)) {
					return nil
				}
				if err := files[i].read(root, &kept); err != nil {
					return err
				}
			}
		})
	}
	return files, group.Wait()
}

// imageNames lists the image files in a directory, in no order.
func imageNames(dir string) ([]string, error) {
	d, err := os.Open(dir) // a file of an os.Root would look at each entry
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && imageName.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// read finds out size and digest, and keeps the content of a small file.
func (f *imageFile) read(root *os.Root, kept *atomic.Int64) error {
	file, err := root.Open(f.Name)
	if err != nil {
		return err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	if size := info.Size(); size <= smallImage && kept.Add(size) <= keptImages {
		content := make([]byte, size)
		if _, err := io.ReadFull(file, content); err != nil {
			return fmt.Errorf("%s: %w", f.Name, noEOF(err))
		}
		digest := sha256.Sum256(content)
		f.content, f.Size, f.SHA256 = content, size, hex.EncodeToString(digest[:])
		return nil
	}
	h := sha256.New()
	if f.Size, err = io.Copy(h, file); err != nil {
		return err
	}
	f.SHA256 = hex.EncodeToString(h.Sum(nil))
	return nil
}

func (f *imageFile) send(w io.Writer, root *os.Root) error {
	if f.content != nil {
		_, err := w.Write(f.content)
		return err
	}
	file, err := root.Open(f.Name)
	if err != nil {
		return err
	}
	defer file.Close()
	if _, err := io.CopyN(w, file, f.Size); err != nil {
		return fmt.Errorf("%s: %w", f.Name, noEOF(err))
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

func receiveFile(r io.Reader, root *os.Root, file manifestFile, room *reserve.Meter) error {
	if file.Size > smallImage {
		return receiveLarge(r, root, file, room)
	}
	content := make([]byte, file.Size)
	if _, err := io.ReadFull(r, content); err != nil {
		return noEOF(err)
	}
	if err := file.checkDigest(sha256.Sum256(content)); err != nil {
		return err
	}
	f, err := root.OpenFile(file.Name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err = room.Add(int(f.Fd()), file.Size, 1); err != nil {
		err = fmt.Errorf("%w: %w", ErrLimit, err)
	} else {
		_, err = f.Write(content)
	}
	return errors.Join(err, f.Close())
}

func (f manifestFile) checkDigest(digest [sha256.Size]byte) error {
	if got := hex.EncodeToString(digest[:]); got != f.SHA256 {
		return fmt.Errorf("%w: its digest is %s, not %s", ErrCorrupt, got, f.SHA256)
	}
	return nil
}

// receiveLarge is receiveFile piece by piece.
func receiveLarge(r io.Reader, root *os.Root, file manifestFile, room *reserve.Meter) (err error) {
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
	return file.checkDigest([sha256.Size]byte(h.Sum(nil)))
}
