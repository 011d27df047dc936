package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"podd/pod"
)

// Options configure a Store.
type Options struct {
	// Dir is where the store lives; it is created. It must not contain ':' or
	// ',', which separate options of an overlay mount.
	Dir string
	// Log gets what goes on; nil means slog.Default().
	Log *slog.Logger
	// InUse lists the digests of images that pods use, each with the names of
	// those pods. It is called during Import and Remove; nil means none.
	InUse func() (map[string][]string, error)
	// Limits bound an import.
	Limits Limits
}

// Store is a host's images. It is safe for concurrent use; imports and
// removals wait for each other. Only one Store can have a directory open.
type Store struct {
	dir    string
	log    *slog.Logger
	inUse  func() (map[string][]string, error)
	limits Limits
	lock   *os.File
	// changing is held (sent into) by what changes the store, so that waiting
	// for it can be cancelled.
	changing chan struct{}

	mu       sync.Mutex // guards what follows
	index    index
	acquired map[string]int  // digest -> number of holders
	claimed  map[string]bool // digests that are about to be removed
}

// index is the content of index.json.
type index struct {
	Version int      `json:"version"`
	Images  []record `json:"images"`
}

const indexVersion = 1

// record is one image in the index.
type record struct {
	Digest     string        `json:"digest"`
	Names      []string      `json:"names,omitempty"`
	Layers     []layerRecord `json:"layers"` // bottom first, as in the configuration
	Config     Config        `json:"config"`
	CreatedAt  time.Time     `json:"createdAt,omitzero"`
	ImportedAt time.Time     `json:"importedAt"`
}

type layerRecord struct {
	DiffID v1.Hash `json:"diffID"`
	Size   int64   `json:"size"`
}

// Open opens the store in opts.Dir, creating it if there is none, and deletes
// what an earlier process left half-made. The error wraps pod.ErrConflict if
// another process has the store open. Close it after use.
func Open(opts Options) (*Store, error) {
	dir, err := filepath.Abs(opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("opening image store %s: %w", opts.Dir, err)
	}
	if strings.ContainsAny(dir, ":,\\") {
		return nil, fmt.Errorf("%w: image store %s: the path must not contain ':', ',' or '\\': overlay mounts can't express it", pod.ErrInvalid, dir)
	}
	s := &Store{
		dir:      dir,
		log:      opts.Log,
		inUse:    opts.InUse,
		limits:   opts.Limits.withDefaults(),
		changing: make(chan struct{}, 1),
		acquired: map[string]int{},
		claimed:  map[string]bool{},
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if err := s.open(); err != nil {
		return nil, fmt.Errorf("opening image store %s: %w", dir, errors.Join(err, s.Close()))
	}
	return s, nil
}

func (s *Store) open() error {
	// 0700, and again in case it exists: see the package comment.
	for _, dir := range []string{s.dir, s.path("layers"), s.path("tmp")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := os.Chmod(s.path("layers"), 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(s.path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	s.lock = lock
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("%w: another process has it open", pod.ErrConflict)
		}
		return fmt.Errorf("locking: %w", err)
	}
	if err := s.readIndex(); err != nil {
		return err
	}
	if err := s.removeContent(s.path("tmp")); err != nil {
		return fmt.Errorf("removing unfinished imports: %w", err)
	}
	return s.collect()
}

// Close lets another process open the store. Images stay usable.
func (s *Store) Close() error {
	if s.lock == nil {
		return nil
	}
	err := s.lock.Close()
	s.lock = nil
	return err
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}

func (s *Store) layerDir(diffID v1.Hash) string {
	return s.path("layers", diffID.Algorithm, diffID.Hex)
}

func (s *Store) readIndex() error {
	data, err := os.ReadFile(s.path("index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		s.index = index{Version: indexVersion}
		return nil
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, &s.index); err != nil {
		return fmt.Errorf("reading index.json: %w", err)
	}
	if s.index.Version != indexVersion {
		return fmt.Errorf("index.json has version %d, this program knows %d", s.index.Version, indexVersion)
	}
	for _, r := range s.index.Images {
		for _, l := range r.Layers {
			if _, err := os.Stat(s.layerDir(l.DiffID)); err != nil {
				s.log.Warn("image is damaged: import it again", "image", r.name(), "err", err)
			}
		}
	}
	return nil
}

// writeIndex makes next the index, on disk before in memory.
func (s *Store) writeIndex(next index) error {
	data, err := json.MarshalIndent(next, "", "\t")
	if err != nil {
		return fmt.Errorf("encoding index.json: %w", err)
	}
	if err := renameio.WriteFile(s.path("index.json"), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing index.json: %w", err)
	}
	if err := syncDir(s.dir); err != nil {
		return err
	}
	s.mu.Lock()
	s.index = next
	s.mu.Unlock()
	return nil
}

// change waits until nothing else changes the store. Call the result when done.
func (s *Store) change(ctx context.Context) (done func(), err error) {
	select {
	case s.changing <- struct{}{}:
		return func() { <-s.changing }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for another change of the image store: %w", ctx.Err())
	}
}

// snapshot returns a copy of the index whose images may be changed.
func (s *Store) snapshot() index {
	s.mu.Lock()
	defer s.mu.Unlock()
	images := slices.Clone(s.index.Images)
	for i := range images {
		images[i].Names = slices.Clone(images[i].Names)
	}
	return index{Version: s.index.Version, Images: images}
}

func (r record) name() string {
	if len(r.Names) > 0 {
		return r.Names[0]
	}
	return r.Digest
}

func (s *Store) image(r record, name string) Image {
	img := Image{
		Name:       name,
		Names:      slices.Clone(r.Names),
		Digest:     r.Digest,
		Config:     r.Config,
		CreatedAt:  r.CreatedAt,
		ImportedAt: r.ImportedAt,
	}
	seen := map[v1.Hash]bool{}
	for _, l := range slices.Backward(r.Layers) {
		// A layer that occurs twice counts where it is topmost: there it hides
		// everything that it could show further down. Overlay refuses a lower
		// directory that is given twice.
		if !seen[l.DiffID] {
			seen[l.DiffID] = true
			img.Layers = append(img.Layers, s.layerDir(l.DiffID))
			img.Size += l.Size
		}
	}
	return img
}

// syncDir makes the entries of dir survive a power failure.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
