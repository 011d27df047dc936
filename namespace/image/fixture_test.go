package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"
)

var created = time.Date(2024, 2, 3, 4, 5, 6, 0, time.UTC)

// makeLayer makes a layer of the given media type.
func makeLayer(t testing.TB, media types.MediaType, entries ...entry) v1.Layer {
	t.Helper()
	data := makeTar(t, entries...)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}, tarball.WithMediaType(media))
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// zstdLayer has what go-containerregistry's layers keep to themselves: its
// blob is compressed with zstd.
type zstdLayer struct {
	v1.Layer
	diffID v1.Hash
}

func (l zstdLayer) DiffID() (v1.Hash, error) { return l.diffID, nil }

func makeZstdLayer(t testing.TB, entries ...entry) v1.Layer {
	t.Helper()
	data := makeTar(t, entries...)
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	diffID, _, err := v1.SHA256(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	return zstdLayer{static.NewLayer(w.EncodeAll(data, nil), types.OCILayerZStd), diffID}
}

func makeImage(t testing.TB, layers ...v1.Layer) v1.Image {
	t.Helper()
	img := mutate.MediaType(empty.Image, types.OCIManifestSchema1)
	img = mutate.ConfigMediaType(img, types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, layers...)
	if err != nil {
		t.Fatal(err)
	}
	return configure(t, img, func(c *v1.ConfigFile) {
		c.OS, c.Architecture = "linux", runtime.GOARCH
		c.Created = v1.Time{Time: created}
		c.Config = v1.Config{
			Env: []string{"A=1"}, Entrypoint: []string{"/bin/e"}, Cmd: []string{"c"}, User: "u:g",
			WorkingDir: "/w", Labels: map[string]string{"k": "v"}, StopSignal: "SIGQUIT",
		}
	})
}

func configure(t testing.TB, img v1.Image, change func(*v1.ConfigFile)) v1.Image {
	t.Helper()
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	change(config)
	img, err = mutate.ConfigFile(img, config)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// twoLayers is an image with a gzip and a zstd layer.
func twoLayers(t testing.TB) v1.Image {
	return makeImage(t,
		makeLayer(t, types.OCILayer, entry{name: "etc/motd", content: "below"}, entry{name: "etc/gone"}),
		makeZstdLayer(t, entry{name: "etc/motd", content: "above"}, entry{name: "etc/.wh.gone"}))
}

// writeLayout makes an OCI layout of images, whose names are annotations.
func writeLayout(t testing.TB, images map[string]v1.Image) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "webapp")
	l, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	for ref, img := range images {
		var opts []layout.Option
		if ref != "" {
			opts = append(opts, layout.WithAnnotations(map[string]string{annotationRefName: ref}))
		}
		if err := l.AppendImage(img, opts...); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// tarLayout packs a layout as "podman save --format oci-archive" does.
func tarLayout(t testing.TB, dir string) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if err := w.AddFS(os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func writeFile(t testing.TB, base string, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), base)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func writeDocker(t testing.TB, images map[string]v1.Image) string {
	t.Helper()
	refs := map[name.Reference]v1.Image{}
	for ref, img := range images {
		tag, err := name.NewTag(ref)
		if err != nil {
			t.Fatal(err)
		}
		refs[tag] = img
	}
	path := filepath.Join(t.TempDir(), "saved.tar")
	if err := tarball.MultiRefWriteToFile(path, refs); err != nil {
		t.Fatal(err)
	}
	return path
}

func gzipped(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return writeFile(t, filepath.Base(path)+".gz", buf.Bytes())
}

func openStore(t testing.TB, opts Options) *Store {
	t.Helper()
	if opts.Dir == "" {
		opts.Dir = filepath.Join(t.TempDir(), "images")
	}
	opts.Log = quiet
	s, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(s.Close(), removeTree(opts.Dir)); err != nil {
			t.Error(err)
		}
	})
	return s
}

func mustImport(t testing.TB, s *Store, src, name string) Image {
	t.Helper()
	img, err := s.Import(context.Background(), src, ImportOptions{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// listLayers returns the layers on disk and checks that nothing else is there.
func listLayers(t testing.TB, s *Store) []string {
	t.Helper()
	layers, err := filepath.Glob(s.path("layers", "sha256", "*"))
	if err != nil {
		t.Fatal(err)
	}
	left, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		t.Fatal(err)
	}
	if len(left) > 0 {
		t.Errorf("left in tmp: %v", left)
	}
	return layers
}
