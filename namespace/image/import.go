package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"podd/pod"
)

// ImportOptions say how to import.
type ImportOptions struct {
	// Name is what the image is to be called. Empty means its names in the
	// archive, or else the name of the file. Where an archive has several
	// images, Name says which one.
	Name string
	// Progress, if not nil, is called from the importing goroutine a few times
	// per layer.
	Progress func(Progress)
}

// Progress of an import.
type Progress struct {
	// Layer is the layer being unpacked, from 1, of Layers.
	Layer, Layers int
	// Bytes is how much of the layer's tar stream has been read.
	Bytes int64
	// Shared is true for a layer that the store had already.
	Shared bool
}

// Import takes the image in the archive src into the store: a directory with
// an OCI layout, or such a layout or the output of docker save or podman save
// as a tar file, which may be compressed with gzip or zstd. Layers that the
// store already has are not unpacked again. A name taken by another image goes
// over to the new one; what nothing names or uses any more is deleted.
//
// The error wraps pod.ErrNotFound if there is no src, pod.ErrInvalid if it
// can't be used, and pod.ErrExhausted if there is no space. The store is then
// as it was before.
func (s *Store) Import(ctx context.Context, src string, opts ImportOptions) (_ Image, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("importing image %s: %w", src, err)
		}
	}()
	done, err := s.change(ctx)
	if err != nil {
		return Image{}, err
	}
	defer done()
	tmp, err := os.MkdirTemp(s.path("tmp"), "import-")
	if err != nil {
		return Image{}, err
	}
	defer func() { err = errors.Join(err, removeTree(tmp)) }()

	archive, err := openArchive(ctx, src, tmp, s.limits.ArchiveBytes)
	if err != nil {
		return Image{}, err
	}
	defer func() { err = errors.Join(err, archive.close()) }()
	found, err := readArchive(archive, baseName(src), s.limits.MetadataBytes)
	if err != nil {
		return Image{}, err
	}
	chosen, names, err := choose(found, opts.Name, baseName(src))
	if err != nil {
		return Image{}, err
	}
	r, err := s.addLayers(ctx, chosen, tmp, opts.Progress)
	if err != nil {
		return Image{}, err
	}
	r.Names = names
	if err := s.addRecord(&r); err != nil {
		return Image{}, err
	}
	s.log.Info("image imported", "image", names[0], "digest", r.Digest, "layers", len(r.Layers), "source", src)
	return s.image(r, names[0]), s.collectUnused()
}

func readArchive(a archive, base string, maxBytes int64) ([]source, error) {
	found, err := readOCI(a, base, maxBytes)
	if isMissing(err) {
		found, err = readDocker(a, maxBytes)
	}
	if isMissing(err) {
		return nil, fmt.Errorf("%w: neither an OCI layout nor an archive of docker save or podman save (it has no oci-layout and no manifest.json); a root file system in a directory needs no import: podctl run --image dir:PATH", pod.ErrInvalid)
	}
	return found, err
}

// choose returns the image to import and its canonical names.
func choose(found []source, want, base string) (source, []string, error) {
	if want != "" {
		canonical, err := CanonicalName(want)
		if err != nil {
			return source{}, nil, err
		}
		for _, s := range found {
			if len(found) == 1 || slices.Contains(canonicalNames(s.names), canonical) {
				return s, []string{canonical}, nil
			}
		}
	}
	if len(found) > 1 {
		var have []string
		for _, s := range found {
			have = append(have, canonicalNames(s.names)...)
		}
		return source{}, nil, fmt.Errorf("%w: the archive has %d images; name the one to import: %s", pod.ErrInvalid, len(found), strings.Join(have, ", "))
	}
	names := canonicalNames(found[0].names)
	if len(names) == 0 {
		name, err := CanonicalName(base)
		if err != nil {
			return source{}, nil, fmt.Errorf("%w: the archive does not name the image; give it a name", pod.ErrInvalid)
		}
		names = []string{name}
	}
	return found[0], names, nil
}

// canonicalNames leaves out what is no name: the archive is not trusted.
func canonicalNames(names []string) []string {
	var list []string
	for _, name := range names {
		if c, err := CanonicalName(name); err == nil && !slices.Contains(list, c) {
			list = append(list, c)
		}
	}
	return list
}

var archiveSuffix = regexp.MustCompile(`(\.(oci|docker))?(\.(tar|tgz|gz|zst|tzst))*$`)

// baseName is what an image without a name is called: its file without the
// suffixes of archives.
func baseName(src string) string {
	abs, err := filepath.Abs(src)
	if err != nil {
		abs = src
	}
	return archiveSuffix.ReplaceAllString(strings.ToLower(filepath.Base(abs)), "")
}

// addLayers puts the image's layers that are missing into the store and
// returns its record, without names.
func (s *Store) addLayers(ctx context.Context, src source, tmp string, progress func(Progress)) (record, error) {
	diffIDs := src.config.RootFS.DiffIDs
	switch {
	case len(diffIDs) == 0:
		return record{}, fmt.Errorf("%w: the image has no layers", pod.ErrInvalid)
	case len(diffIDs) > s.limits.Layers:
		return record{}, fmt.Errorf("%w: the image has %d layers; at most %d are supported", pod.ErrInvalid, len(diffIDs), s.limits.Layers)
	case len(diffIDs) != len(src.layers):
		return record{}, fmt.Errorf("%w: the image has %d layers, its configuration lists %d", pod.ErrInvalid, len(src.layers), len(diffIDs))
	}
	r := record{Digest: src.digest.String(), Config: configOf(src.config), CreatedAt: src.config.Created.UTC(), ImportedAt: time.Now().UTC()}
	if progress == nil {
		progress = func(Progress) {}
	}
	sizes, err := s.layerSizes()
	if err != nil {
		return record{}, err
	}
	fresh := map[v1.Hash]string{} // diff ID -> where it was unpacked
	for i, id := range diffIDs {
		p := Progress{Layer: i + 1, Layers: len(diffIDs)}
		size, have := sizes[id]
		if !have {
			dir := filepath.Join(tmp, fmt.Sprintf("layer-%d", i))
			if size, err = s.unpackBlob(ctx, src.layers[i], id, dir, func(n int64) { p.Bytes = n; progress(p) }); err != nil {
				return record{}, fmt.Errorf("layer %d of %d: %w", i+1, len(diffIDs), err)
			}
			fresh[id], sizes[id] = dir, size
		} else {
			p.Shared = true
			progress(p)
		}
		r.Layers = append(r.Layers, layerRecord{DiffID: id, Size: size})
	}
	return r, s.installLayers(fresh)
}

// layerSizes returns the layers that the store has and that are still there.
func (s *Store) layerSizes() (map[v1.Hash]int64, error) {
	sizes := map[v1.Hash]int64{}
	for _, r := range s.snapshot().Images {
		for _, l := range r.Layers {
			_, err := os.Stat(s.layerDir(l.DiffID))
			if err == nil {
				sizes[l.DiffID] = l.Size
			} else if !os.IsNotExist(err) {
				return nil, err
			}
		}
	}
	return sizes, nil
}

// installLayers gives complete layers their names. A layer of that name which
// the index does not know may be half-deleted and is replaced.
func (s *Store) installLayers(fresh map[v1.Hash]string) error {
	if len(fresh) == 0 {
		return nil
	}
	if err := syncFS(s.dir); err != nil {
		return noSpace(fmt.Errorf("writing layers to disk: %w", err))
	}
	for id, dir := range fresh {
		target := s.layerDir(id)
		if err := os.MkdirAll(filepath.Dir(target), 0o700); err != nil {
			return err
		}
		if err := s.discard(target); err != nil {
			return err
		}
		if err := os.Rename(dir, target); err != nil {
			return err
		}
		if err := syncDir(filepath.Dir(target)); err != nil {
			return err
		}
	}
	return syncDir(s.path("layers"))
}

// addRecord writes an index that has r, and where other images have lost their
// names to it.
func (s *Store) addRecord(r *record) error {
	next := s.snapshot()
	for i := range next.Images {
		o := &next.Images[i]
		if o.Digest == r.Digest {
			r.ImportedAt = o.ImportedAt
			for _, name := range o.Names {
				if !slices.Contains(r.Names, name) {
					r.Names = append(r.Names, name)
				}
			}
		}
		o.Names = slices.DeleteFunc(o.Names, func(n string) bool { return slices.Contains(r.Names, n) })
	}
	next.Images = slices.DeleteFunc(next.Images, func(o record) bool { return o.Digest == r.Digest })
	next.Images = append(next.Images, *r)
	return s.writeIndex(next)
}

// unpackBlob unpacks b into the new directory dir and checks what it read
// against every digest known.
func (s *Store) unpackBlob(ctx context.Context, b blob, diffID v1.Hash, dir string, progress func(int64)) (size int64, err error) {
	file, err := b.open()
	if err != nil {
		return 0, fmt.Errorf("%w: incomplete archive: %w", pod.ErrInvalid, noSentinel(err))
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	stored, err := newVerifier(file, b.digest, b.size)
	if err != nil {
		return 0, err
	}
	plain, _, err := decompress(stored)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, plain.Close()) }()
	content, err := newVerifier(newLimitReader(plain, s.limits.LayerBytes, "the layer"), diffID, -1)
	if err != nil {
		return 0, err
	}
	content.progress = progress
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, err
	}
	size, unpackErr := unpack(ctx, content, dir, s.limits, s.log)
	if unpackErr != nil && !errors.Is(unpackErr, pod.ErrInvalid) {
		return 0, unpackErr
	}
	// The tar stream has padding at its end, which the digest covers.
	_, contentErr := io.Copy(io.Discard, contextReader{ctx, content})
	_, storedErr := io.Copy(io.Discard, contextReader{ctx, stored})
	// A wrong digest explains an error in what it is the digest of.
	if storedErr == nil {
		if err := stored.verify("blob"); err != nil {
			return 0, err
		}
	}
	if contentErr == nil {
		if err := content.verify("content"); err != nil {
			return 0, err
		}
	}
	if unpackErr != nil {
		return 0, unpackErr
	}
	if err := cmp.Or(contentErr, storedErr); err != nil {
		return 0, fmt.Errorf("reading layer: %w", err)
	}
	return size, nil
}

// syncFS writes the file system that dir is on to disk.
func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}
