package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"podd/pod"
)

func TestCanonicalName(t *testing.T) {
	for name, want := range map[string]string{
		"redis":                           "redis:latest",
		"redis:7":                         "redis:7",
		"docker.io/library/redis:7":       "redis:7",
		"docker.io/team/app":              "team/app:latest",
		"localhost/app:1":                 "app:1",
		"localhost:5000/app":              "localhost:5000/app:latest",
		"Example.org/app:V1":              "Example.org/app:V1",
		"host":                            "",
		"Redis":                           "",
		"a:b:c":                           "",
		"../etc":                          "",
		"a//b":                            "",
		"":                                "",
		"a b":                             "",
		"a@sha256:0000":                   "",
		strings.Repeat("a", 256):          "",
		"app:" + strings.Repeat("t", 129): "",
	} {
		got, err := CanonicalName(name)
		if got != want || (want == "") != errors.Is(err, pod.ErrInvalid) {
			t.Errorf("CanonicalName(%q) = %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestCommand(t *testing.T) {
	c := Config{Entrypoint: []string{"e", "1"}, Cmd: []string{"c"}}
	if got := c.Command(nil); !slices.Equal(got, []string{"e", "1", "c"}) {
		t.Errorf("Command() = %q", got)
	}
	if got := c.Command([]string{"x"}); !slices.Equal(got, []string{"e", "1", "x"}) {
		t.Errorf("Command(x) = %q", got)
	}
}

func testLayout(t testing.TB, content string) string {
	return writeLayout(t, map[string]v1.Image{"": makeImage(t, makeLayer(t, types.OCILayer, entry{name: "f", content: content}))})
}

func TestResolve(t *testing.T) {
	s := openStore(t, Options{})
	img := mustImport(t, s, testLayout(t, "1"), "app:1")
	hex := strings.TrimPrefix(img.Digest, "sha256:")
	for _, name := range []string{"app:1", "docker.io/library/app:1", "localhost/app:1", img.Digest, hex, hex[:12], "sha256:" + hex[:12]} {
		got, err := s.Resolve(name)
		if err != nil || got.Digest != img.Digest || got.BuiltIn() {
			t.Errorf("Resolve(%q) = %v, %v", name, got, err)
		}
	}
	host, err := s.Resolve("host")
	if err != nil || !host.BuiltIn() || host.Layers != nil {
		t.Errorf("host: %v, %v", host, err)
	}
	for name, is := range map[string]error{
		"app":                               pod.ErrNotFound,
		"sha256:" + strings.Repeat("0", 64): pod.ErrNotFound,
		"NO":                                pod.ErrInvalid,
		"dir:relative":                      pod.ErrInvalid,
		"dir:/":                             pod.ErrInvalid,
		"dir:/nonexistent/x":                pod.ErrNotFound,
		"dir:" + s.path("index.json"):       pod.ErrInvalid,
	} {
		if _, err := s.Resolve(name); !errors.Is(err, is) {
			t.Errorf("Resolve(%q): %v, want %v", name, err, is)
		}
	}
	_, err = s.Resolve("nosuch")
	for _, want := range []string{"nosuch:latest", "app:1", "host", "podctl image import"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}

func TestResolveDir(t *testing.T) {
	s := openStore(t, Options{})
	real, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(real, link); err != nil {
		t.Fatal(err)
	}
	img, err := s.Resolve("dir:" + link)
	if err != nil {
		t.Fatal(err)
	}
	if !img.BuiltIn() || img.Name != "dir:"+link || !slices.Equal(img.Layers, []string{real}) {
		t.Errorf("image %+v", img)
	}
	colon := filepath.Join(real, "a:b")
	if err := os.Mkdir(colon, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Resolve("dir:" + colon); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("colon in path: %v", err)
	}
}

func TestNamesMove(t *testing.T) {
	used := map[string][]string{}
	s := openStore(t, Options{InUse: func() (map[string][]string, error) { return used, nil }})
	old := mustImport(t, s, testLayout(t, "1"), "app")
	used[old.Digest] = []string{"alice"}
	mustImport(t, s, testLayout(t, "2"), "app")
	list := s.List()
	if len(list) != 2 || list[0].Digest != old.Digest || list[0].Name != "" || list[1].Name != "app:latest" {
		t.Fatalf("images %+v", list)
	}
	if err := s.Remove(context.Background(), old.Digest); !errors.Is(err, pod.ErrConflict) || !strings.Contains(err.Error(), "alice") {
		t.Errorf("removing an image in use: %v", err)
	}
	wantContent(t, filepath.Join(old.Layers[0], "f"), "1")
	// With its last user the unnamed image goes at the next change.
	delete(used, old.Digest)
	two := mustImport(t, s, testLayout(t, "2"), "second")
	if list := s.List(); len(list) != 1 || !slices.Equal(list[0].Names, []string{"second:latest", "app:latest"}) {
		t.Errorf("images %+v", list)
	}
	if n := len(listLayers(t, s)); n != 1 {
		t.Errorf("%d layers on disk", n)
	}
	// Of two names one goes, then the image.
	used[two.Digest] = []string{"bob"}
	if err := s.Remove(context.Background(), "app"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(context.Background(), "second"); !errors.Is(err, pod.ErrConflict) {
		t.Errorf("removing the last name of an image in use: %v", err)
	}
	delete(used, two.Digest)
	if err := s.Remove(context.Background(), "second"); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(context.Background(), "second"); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("removing twice: %v", err)
	}
	if err := s.Remove(context.Background(), "host"); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("removing host: %v", err)
	}
}

func TestAcquire(t *testing.T) {
	s := openStore(t, Options{})
	mustImport(t, s, testLayout(t, "1"), "app")
	_, release, err := s.Acquire("app")
	if err != nil {
		t.Fatal(err)
	}
	_, release2, err := s.Acquire("app")
	if err != nil {
		t.Fatal(err)
	}
	release()
	release()
	if err := s.Remove(context.Background(), "app"); !errors.Is(err, pod.ErrConflict) {
		t.Errorf("removing an acquired image: %v", err)
	}
	release2()
	if err := s.Remove(context.Background(), "app"); err != nil {
		t.Error(err)
	}
	if _, _, err := s.Acquire("app"); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("acquiring a removed image: %v", err)
	}
	if _, release, err := s.Acquire("host"); err != nil {
		t.Error(err)
	} else {
		release()
	}
}

func TestRemoveWhenPodsUnknown(t *testing.T) {
	s := openStore(t, Options{InUse: func() (map[string][]string, error) { return nil, errors.New("directory down") }})
	img := mustImport(t, s, testLayout(t, "1"), "app")
	if err := s.Remove(context.Background(), "app"); err == nil || !strings.Contains(err.Error(), "directory down") {
		t.Errorf("error %v", err)
	}
	wantContent(t, filepath.Join(img.Layers[0], "f"), "1")
}

// TestConcurrent imports, resolves and removes at once: every image resolved
// and held must be whole.
func TestConcurrent(t *testing.T) {
	s := openStore(t, Options{})
	sources := []string{testLayout(t, "0"), testLayout(t, "1")}
	var wg sync.WaitGroup
	for i, src := range sources {
		name := fmt.Sprintf("app%d", i)
		wg.Go(func() {
			for range 5 {
				if _, err := s.Import(context.Background(), src, ImportOptions{Name: name}); err != nil {
					t.Error(err)
				}
				if err := s.Remove(context.Background(), name); err != nil && !errors.Is(err, pod.ErrConflict) {
					t.Error(err)
				}
			}
		})
		wg.Go(func() {
			for range 200 {
				img, release, err := s.Acquire(name)
				if errors.Is(err, pod.ErrNotFound) || errors.Is(err, pod.ErrConflict) {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				data, err := os.ReadFile(filepath.Join(img.Layers[0], "f"))
				if err != nil || string(data) != fmt.Sprint(i) {
					t.Errorf("%s contains %q, %v", name, data, err)
				}
				release()
				s.List()
			}
		})
	}
	wg.Wait()
}

func TestImportWaitsForContext(t *testing.T) {
	s := openStore(t, Options{})
	done, err := s.change(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer done()
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := s.Import(ctx, testLayout(t, "1"), ImportOptions{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
