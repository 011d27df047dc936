package image

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"podd/pod"
)

func TestImport(t *testing.T) {
	img := twoLayers(t)
	digest, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	dir := writeLayout(t, map[string]v1.Image{"": img})
	gz := makeImage(t,
		makeLayer(t, types.DockerLayer, entry{name: "etc/motd", content: "below"}, entry{name: "etc/gone"}),
		makeLayer(t, types.DockerLayer, entry{name: "etc/motd", content: "above"}, entry{name: "etc/.wh.gone"}))
	docker := writeDocker(t, map[string]v1.Image{"example.org/app:1": gz})
	nested := filepath.Join(t.TempDir(), "multi")
	other := configure(t, img, func(c *v1.ConfigFile) { c.Architecture = "s390x" })
	if _, err := layout.Write(nested, mutate.AppendManifests(empty.Index, mutate.IndexAddendum{
		Add: mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "s390x"}}},
			mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}}),
		Descriptor: v1.Descriptor{Annotations: map[string]string{annotationContainerdName: "docker.io/library/multi:3"}},
	})); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, src, want string }{
		{"layout", dir, "webapp:latest"},
		{"layout with tag", writeLayout(t, map[string]v1.Image{"3.19": img}), "webapp:3.19"},
		{"layout with name", writeLayout(t, map[string]v1.Image{"localhost/thing:2": img}), "thing:2"},
		{"layout of platforms", nested, "multi:3"},
		{"layout as tar", writeFile(t, "app.oci.tar", tarLayout(t, dir)), "app:latest"},
		{"layout as tar.gz", gzipped(t, writeFile(t, "app.tar", tarLayout(t, dir))), "app:latest"},
		{"docker save", docker, "example.org/app:1"},
		{"docker save compressed", gzipped(t, docker), "example.org/app:1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := openStore(t, Options{})
			var last Progress
			got, err := s.Import(context.Background(), test.src, ImportOptions{Progress: func(p Progress) { last = p }})
			if err != nil {
				t.Fatal(err)
			}
			if got.Name != test.want || !slices.Equal(got.Names, []string{test.want}) {
				t.Errorf("name %q, names %q, want %q", got.Name, got.Names, test.want)
			}
			if got.Digest != digest.String() && !strings.HasPrefix(test.name, "docker") {
				t.Errorf("digest %s, want %s", got.Digest, digest)
			}
			want := Config{
				Env: []string{"A=1"}, Entrypoint: []string{"/bin/e"}, Cmd: []string{"c"}, User: "u:g",
				WorkingDir: "/w", Labels: map[string]string{"k": "v"}, StopSignal: "SIGQUIT",
			}
			if g, w := mustJSON(t, got.Config), mustJSON(t, want); g != w {
				t.Errorf("config %s, want %s", g, w)
			}
			if !got.CreatedAt.Equal(created) || got.Size != 10 || len(got.Layers) != 2 {
				t.Errorf("created %v, size %d, layers %v", got.CreatedAt, got.Size, got.Layers)
			}
			wantContent(t, filepath.Join(got.Layers[0], "etc/motd"), "above")
			wantWhiteout(t, filepath.Join(got.Layers[0], "etc/gone"))
			wantContent(t, filepath.Join(got.Layers[1], "etc/motd"), "below")
			if last.Layer != 2 || last.Layers != 2 || last.Bytes == 0 {
				t.Errorf("last progress %+v", last)
			}
			if n := len(listLayers(t, s)); n != 2 {
				t.Errorf("%d layers on disk", n)
			}
		})
	}
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestImportSeveral(t *testing.T) {
	a := makeImage(t, makeLayer(t, types.OCILayer, entry{name: "a"}))
	b := makeImage(t, makeLayer(t, types.OCILayer, entry{name: "b"}))
	for name, src := range map[string]string{
		"layout": writeLayout(t, map[string]v1.Image{"a:1": a, "b:1": b}),
		"docker": writeDocker(t, map[string]v1.Image{"a:1": a, "b:1": b}),
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, Options{})
			_, err := s.Import(context.Background(), src, ImportOptions{})
			if !errors.Is(err, pod.ErrInvalid) || !strings.Contains(err.Error(), "a:1") || !strings.Contains(err.Error(), "b:1") {
				t.Errorf("error %v", err)
			}
			img := mustImport(t, s, src, "b:1")
			if _, err := os.Stat(filepath.Join(img.Layers[0], "b")); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestImportSharesLayers(t *testing.T) {
	base := makeLayer(t, types.OCILayer, entry{name: "base", content: "12345"})
	s := openStore(t, Options{})
	one := mustImport(t, s, writeLayout(t, map[string]v1.Image{"": makeImage(t, base, makeLayer(t, types.OCILayer, entry{name: "1", content: "1"}))}), "one")
	marker := filepath.Join(one.Layers[1], "base")
	before := lstat(t, marker)
	two := mustImport(t, s, writeLayout(t, map[string]v1.Image{"": makeImage(t, base, makeLayer(t, types.OCILayer, entry{name: "2", content: "2"}))}), "two")
	if one.Layers[1] != two.Layers[1] || one.Size != 6 || two.Size != 6 {
		t.Errorf("layers %v and %v, sizes %d and %d", one.Layers, two.Layers, one.Size, two.Size)
	}
	if after := lstat(t, marker); after.Ino != before.Ino {
		t.Error("the shared layer was unpacked again")
	}
	if n := len(listLayers(t, s)); n != 3 {
		t.Errorf("%d layers on disk, want 3", n)
	}
	if err := s.Remove(context.Background(), "one"); err != nil {
		t.Fatal(err)
	}
	if n := len(listLayers(t, s)); n != 2 {
		t.Errorf("%d layers on disk after removal, want 2", n)
	}
	wantContent(t, marker, "12345")
	if err := s.Remove(context.Background(), two.Digest); err != nil {
		t.Fatal(err)
	}
	if layers := listLayers(t, s); len(layers) != 0 {
		t.Errorf("layers on disk after last removal: %v", layers)
	}
}

func TestImportRepeatedLayer(t *testing.T) {
	l := makeLayer(t, types.OCILayer, entry{name: "l", content: "l"})
	m := makeLayer(t, types.OCILayer, entry{name: "m", content: "m"})
	s := openStore(t, Options{})
	img := mustImport(t, s, writeLayout(t, map[string]v1.Image{"": makeImage(t, l, m, l)}), "x")
	if len(img.Layers) != 2 || img.Size != 2 {
		t.Fatalf("layers %v, size %d", img.Layers, img.Size)
	}
	wantContent(t, filepath.Join(img.Layers[0], "l"), "l")
	wantContent(t, filepath.Join(img.Layers[1], "m"), "m")
}

func TestOpenRemovesLeftovers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "images")
	s := openStore(t, Options{Dir: dir})
	img := mustImport(t, s, writeLayout(t, map[string]v1.Image{"": twoLayers(t)}), "x")
	if _, err := Open(Options{Dir: dir, Log: quiet}); !errors.Is(err, pod.ErrConflict) {
		t.Errorf("opening twice: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	orphan := filepath.Join(dir, "layers", "sha256", strings.Repeat("ab", 32))
	for _, path := range []string{filepath.Join(dir, "tmp", "import-1", "layer-0", "d"), orphan} {
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s = openStore(t, Options{Dir: dir})
	if layers := listLayers(t, s); len(layers) != 2 || slices.Contains(layers, orphan) {
		t.Errorf("layers %v", layers)
	}
	again, err := s.Resolve("x")
	if err != nil {
		t.Fatal(err)
	}
	if g, w := mustJSON(t, again), mustJSON(t, img); g != w {
		t.Errorf("after reopening %s, before %s", g, w)
	}
	// A layer that somebody deleted is unpacked again.
	if err := removeTree(img.Layers[0]); err != nil {
		t.Fatal(err)
	}
	mustImport(t, s, writeLayout(t, map[string]v1.Image{"": twoLayers(t)}), "x")
	if _, err := os.Stat(img.Layers[0]); errors.Is(err, fs.ErrNotExist) {
		t.Error("the missing layer was not restored")
	}
}
