package image

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"podd/pod"
)

func TestImportRefuses(t *testing.T) {
	img := twoLayers(t)
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	blobFile := func(dir string, i int) string {
		digest, err := layers[i].Digest()
		if err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, "blobs", "sha256", digest.Hex)
	}
	damage := func(t *testing.T, path string) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[len(data)/2] ^= 0xff
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, test := range map[string]struct {
		src  func(t *testing.T) string
		is   error
		want string
	}{
		"nothing there":   {func(t *testing.T) string { return "/nonexistent/app.tar" }, pod.ErrNotFound, "no such file"},
		"dir":             {func(t *testing.T) string { return "dir:/" }, pod.ErrInvalid, "needs no import"},
		"device":          {func(t *testing.T) string { return "/dev/null" }, pod.ErrInvalid, "neither a file nor a directory"},
		"plain directory": {func(t *testing.T) string { return t.TempDir() }, pod.ErrInvalid, "neither an OCI layout"},
		"other tar":       {func(t *testing.T) string { return writeFile(t, "x.tar", makeTar(t, entry{name: "etc/passwd"})) }, pod.ErrInvalid, "neither an OCI layout"},
		"text":            {func(t *testing.T) string { return writeFile(t, "x", []byte(strings.Repeat("hello ", 200))) }, pod.ErrInvalid, "tar"},
		"xz":              {func(t *testing.T) string { return writeFile(t, "x", append(slices.Clone(xzMagic), 0, 0)) }, pod.ErrInvalid, "gzip and zstd are supported"},
		"blob damaged": {func(t *testing.T) string {
			dir := writeLayout(t, map[string]v1.Image{"": img})
			damage(t, blobFile(dir, 0))
			return dir
		}, pod.ErrInvalid, "is damaged"},
		"blob too long": {func(t *testing.T) string {
			dir := writeLayout(t, map[string]v1.Image{"": img})
			f, err := os.OpenFile(blobFile(dir, 1), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.Write(make([]byte, 100)); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			return dir
		}, pod.ErrInvalid, "descriptor says"},
		"blob missing": {func(t *testing.T) string {
			dir := writeLayout(t, map[string]v1.Image{"": img})
			if err := os.Remove(blobFile(dir, 1)); err != nil {
				t.Fatal(err)
			}
			return dir
		}, pod.ErrInvalid, "incomplete archive"},
		"blob is a link out of the layout": {func(t *testing.T) string {
			dir := writeLayout(t, map[string]v1.Image{"": img})
			path := blobFile(dir, 1)
			if err := os.Rename(path, filepath.Join(filepath.Dir(dir), "blob")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink("../../../blob", path); err != nil {
				t.Fatal(err)
			}
			return dir
		}, pod.ErrInvalid, "escapes"},
		"config damaged": {func(t *testing.T) string {
			dir := writeLayout(t, map[string]v1.Image{"": img})
			digest, err := img.ConfigName()
			if err != nil {
				t.Fatal(err)
			}
			damage(t, filepath.Join(dir, "blobs", "sha256", digest.Hex))
			return dir
		}, pod.ErrInvalid, "is damaged"},
		"wrong diff ID": {func(t *testing.T) string {
			bad := configure(t, img, func(c *v1.ConfigFile) { c.RootFS.DiffIDs[1].Hex = strings.Repeat("0", 64) })
			return writeLayout(t, map[string]v1.Image{"": bad})
		}, pod.ErrInvalid, "content sha256:0000000000"},
		"fewer diff IDs": {func(t *testing.T) string {
			bad := configure(t, img, func(c *v1.ConfigFile) { c.RootFS.DiffIDs = c.RootFS.DiffIDs[:1] })
			return writeLayout(t, map[string]v1.Image{"": bad})
		}, pod.ErrInvalid, "its configuration lists 1"},
		"other platform": {func(t *testing.T) string {
			bad := configure(t, img, func(c *v1.ConfigFile) { c.Architecture = "s390x" })
			return writeLayout(t, map[string]v1.Image{"": bad})
		}, pod.ErrInvalid, "the image is for linux/s390x, this host is linux/" + runtime.GOARCH},
		"other platform in docker": {func(t *testing.T) string {
			bad := configure(t, img, func(c *v1.ConfigFile) { c.OS = "windows" })
			return writeDocker(t, map[string]v1.Image{"a:1": bad})
		}, pod.ErrInvalid, "the image is for windows/"},
		"no layers": {func(t *testing.T) string { return writeLayout(t, map[string]v1.Image{"": makeImage(t)}) }, pod.ErrInvalid, "no layers"},
		"hostile layer": {func(t *testing.T) string {
			bad := makeImage(t, makeLayer(t, types.OCILayer, entry{name: "../../../x"}))
			return writeLayout(t, map[string]v1.Image{"": bad})
		}, pod.ErrInvalid, "'..'"},
		"layer too large": {func(t *testing.T) string {
			big := makeImage(t, makeLayer(t, types.OCILayer, entry{name: "x", content: strings.Repeat("\x00", 2<<20)}))
			return writeLayout(t, map[string]v1.Image{"": big})
		}, pod.ErrInvalid, "more than 1048576 bytes"},
		"bomb in front": {func(t *testing.T) string {
			return gzipped(t, writeFile(t, "x.tar", make([]byte, 5<<20)))
		}, pod.ErrInvalid, "expands to more than 4194304 bytes"},
		"large index": {func(t *testing.T) string {
			dir := writeLayout(t, map[string]v1.Image{"": img})
			if err := os.WriteFile(filepath.Join(dir, "index.json"), bytes.Repeat([]byte(" "), 70<<10), 0o600); err != nil {
				t.Fatal(err)
			}
			return dir
		}, pod.ErrInvalid, "index.json has more than 65536 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Options{Limits: Limits{LayerBytes: 1 << 20, ArchiveBytes: 4 << 20, MetadataBytes: 64 << 10}})
			_, err := s.Import(context.Background(), test.src(t), ImportOptions{Name: "x"})
			if !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			if layers := listLayers(t, s); len(layers) > 0 || len(s.List()) > 0 {
				t.Errorf("left behind: layers %v, images %v", layers, s.List())
			}
		})
	}
}
