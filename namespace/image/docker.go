package image

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"podd/pod"
)

// readDocker returns the images in an archive of docker save or podman save.
// The error wraps fs.ErrNotExist if the archive is none.
func readDocker(a archive, maxBytes int64) ([]source, error) {
	data, err := readAll(a, "manifest.json", maxBytes)
	if err != nil {
		return nil, err
	}
	var manifest tarball.Manifest
	if err := json.Unmarshal(data, &manifest); err != nil {
		return nil, fmt.Errorf("%w: reading manifest.json: %w", pod.ErrInvalid, err)
	}
	if len(manifest) == 0 {
		return nil, fmt.Errorf("%w: manifest.json lists no image", pod.ErrInvalid)
	}
	if len(manifest) > maxManifests {
		return nil, fmt.Errorf("%w: manifest.json lists more than %d images", pod.ErrInvalid, maxManifests)
	}
	var sources []source
	var unfit error
	for _, d := range manifest {
		data, err := readAll(a, d.Config, maxBytes)
		if err != nil {
			return nil, fmt.Errorf("%w: incomplete archive: %w", pod.ErrInvalid, noSentinel(err))
		}
		sum := sha256.Sum256(data)
		s := source{names: d.RepoTags, digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
		if s.config, err = parseConfig(data); err != nil {
			return nil, err
		}
		if err := checkPlatform(s.config.OS, s.config.Architecture); err != nil {
			unfit = err
			continue
		}
		for _, name := range d.Layers {
			s.layers = append(s.layers, blob{
				open: func() (io.ReadCloser, error) { return a.open(name) },
				size: -1,
			})
		}
		sources = append(sources, s)
	}
	if len(sources) == 0 {
		return nil, unfit
	}
	return sources, nil
}
