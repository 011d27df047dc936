package image

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"podd/pod"
)

// source is one image in an archive, found but not yet unpacked.
type source struct {
	names  []string // as the archive has them; may be empty
	digest v1.Hash  // of the configuration
	config *v1.ConfigFile
	layers []blob // bottom first, one per diff ID
}

// blob is a layer as it is in the archive.
type blob struct {
	open func() (io.ReadCloser, error)
	// digest and size are of the blob as stored; unknown (zero, -1) in the
	// archives of docker save, where only the diff ID can be checked.
	digest v1.Hash
	size   int64
}

// Annotations of a manifest in an index that name the image: containerd's and
// docker's, with the whole name; and the specification's, which may be whole
// or a tag alone.
const (
	annotationContainerdName = "io.containerd.image.name"
	annotationRefName        = "org.opencontainers.image.ref.name"
)

// maxIndexDepth is how many image indexes may be inside each other: a layout
// has one, multi-platform images a second.
const maxIndexDepth = 4

// maxManifests bounds how many manifests are looked at in one archive.
const maxManifests = 1000

// ociReader finds the images of an OCI layout that fit this host.
type ociReader struct {
	archive archive
	max     int64
	seen    int
	found   []source
	// unfit says why manifests were passed over.
	unfit []error
}

// readOCI returns the images in an OCI layout. The error wraps fs.ErrNotExist
// if the archive is none.
func readOCI(a archive, base string, maxBytes int64) ([]source, error) {
	marker, err := readAll(a, "oci-layout", maxBytes)
	if err != nil {
		return nil, err
	}
	var layout struct {
		Version string `json:"imageLayoutVersion"`
	}
	if err := json.Unmarshal(marker, &layout); err != nil || !strings.HasPrefix(layout.Version, "1.") {
		return nil, fmt.Errorf("%w: oci-layout has version %q; want 1.x", pod.ErrInvalid, layout.Version)
	}
	data, err := readAll(a, "index.json", maxBytes)
	if err != nil {
		return nil, fmt.Errorf("%w: incomplete OCI layout: %w", pod.ErrInvalid, noSentinel(err))
	}
	r := &ociReader{archive: a, max: maxBytes}
	if err := r.index(data, nil, base, 1); err != nil {
		return nil, err
	}
	if len(r.found) == 0 {
		return nil, cmp.Or(errors.Join(r.unfit...), fmt.Errorf("%w: the OCI layout has no image", pod.ErrInvalid))
	}
	return r.found, nil
}

// noSentinel keeps the text of err only, so that a file missing inside an
// archive is not taken for a missing archive.
func noSentinel(err error) error { return errors.New(err.Error()) }

func (r *ociReader) index(data []byte, names []string, base string, depth int) error {
	index, err := v1.ParseIndexManifest(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("%w: reading image index: %w", pod.ErrInvalid, err)
	}
	for _, d := range index.Manifests {
		if r.seen++; r.seen > maxManifests {
			return fmt.Errorf("%w: the OCI layout has more than %d manifests", pod.ErrInvalid, maxManifests)
		}
		names := names
		if own := annotatedName(d.Annotations, base); own != "" {
			names = []string{own}
		}
		if err := r.descriptor(d, names, base, depth); err != nil {
			return fmt.Errorf("manifest %s: %w", d.Digest, err)
		}
	}
	return nil
}

func (r *ociReader) descriptor(d v1.Descriptor, names []string, base string, depth int) error {
	if d.Platform != nil {
		if err := checkPlatform(d.Platform.OS, d.Platform.Architecture); err != nil {
			r.unfit = append(r.unfit, err)
			return nil
		}
	}
	switch d.MediaType {
	case types.OCIImageIndex, types.DockerManifestList:
		if depth == maxIndexDepth {
			return fmt.Errorf("%w: more than %d image indexes inside each other", pod.ErrInvalid, maxIndexDepth)
		}
		data, err := r.blob(d)
		if err != nil {
			return err
		}
		return r.index(data, names, base, depth+1)
	case types.OCIManifestSchema1, types.DockerManifestSchema2:
		return r.manifest(d, names)
	}
	// Signatures, software bills of material and the like.
	return nil
}

func (r *ociReader) manifest(d v1.Descriptor, names []string) error {
	data, err := r.blob(d)
	if err != nil {
		return err
	}
	m, err := v1.ParseManifest(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("%w: %w", pod.ErrInvalid, err)
	}
	if m.Config.MediaType != types.OCIConfigJSON && m.Config.MediaType != types.DockerConfigJSON {
		return nil // an artifact that is no image
	}
	data, err = r.blob(m.Config)
	if err != nil {
		return err
	}
	s := source{names: names, digest: m.Config.Digest}
	if s.config, err = parseConfig(data); err != nil {
		return err
	}
	if err := checkPlatform(s.config.OS, s.config.Architecture); err != nil {
		r.unfit = append(r.unfit, err)
		return nil
	}
	for _, l := range m.Layers {
		name := blobPath(l.Digest)
		s.layers = append(s.layers, blob{
			open:   func() (io.ReadCloser, error) { return r.archive.open(name) },
			digest: l.Digest,
			size:   l.Size,
		})
	}
	// One image under several names is one manifest listed several times.
	if i := slices.IndexFunc(r.found, func(o source) bool { return o.digest == s.digest }); i >= 0 {
		r.found[i].names = append(r.found[i].names, s.names...)
		return nil
	}
	r.found = append(r.found, s)
	return nil
}

// blob reads a small blob and checks its size and digest.
func (r *ociReader) blob(d v1.Descriptor) ([]byte, error) {
	data, err := readAll(r.archive, blobPath(d.Digest), r.max)
	if err != nil {
		return nil, fmt.Errorf("%w: incomplete OCI layout: %w", pod.ErrInvalid, noSentinel(err))
	}
	if int64(len(data)) != d.Size {
		return nil, fmt.Errorf("%w: blob %s has %d bytes, its descriptor says %d", pod.ErrInvalid, d.Digest, len(data), d.Size)
	}
	return data, checkDigest(data, d.Digest)
}

func checkDigest(data []byte, want v1.Hash) error {
	h, err := v1.Hasher(want.Algorithm)
	if err != nil {
		return fmt.Errorf("%w: digest %q: %w", pod.ErrInvalid, want, err)
	}
	h.Write(data)
	if got := fmt.Sprintf("%x", h.Sum(nil)); got != want.Hex {
		return fmt.Errorf("%w: blob %s is damaged: its content has the digest %s", pod.ErrInvalid, want, got)
	}
	return nil
}

// blobPath is where a layout keeps a blob. v1.Hash has only ever been parsed,
// so both parts are plain words; clean and os.Root hold if they are not.
func blobPath(h v1.Hash) string { return path.Join("blobs", h.Algorithm, h.Hex) }

// annotatedName is the name that an index gives a manifest. A tag alone, as
// "skopeo copy ... oci:alpine:3.19" leaves it, belongs to the name of the
// directory, base.
func annotatedName(annotations map[string]string, base string) string {
	if name := annotations[annotationContainerdName]; name != "" {
		return name
	}
	ref := annotations[annotationRefName]
	if ref == "" || strings.ContainsAny(ref, "/:") {
		return ref
	}
	return base + ":" + ref
}

func parseConfig(data []byte) (*v1.ConfigFile, error) {
	c, err := v1.ParseConfigFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("%w: reading image configuration: %w", pod.ErrInvalid, err)
	}
	if t := c.RootFS.Type; t != "" && t != "layers" {
		return nil, fmt.Errorf("%w: image configuration has a root file system of type %q; want layers", pod.ErrInvalid, t)
	}
	return c, nil
}

// isMissing reports whether err says that the archive is of another kind.
func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
