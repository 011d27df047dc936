package podd

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

func writeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestDigestLower(t *testing.T) {
	top := writeTree(t, map[string]string{"usr/lib/changed.so": "new"})
	bottom := writeTree(t, map[string]string{"usr/lib/changed.so": "old", "usr/lib/kept.so": "kept"})
	if err := os.Symlink("kept.so", filepath.Join(bottom, "usr/lib/link.so")); err != nil {
		t.Fatal(err)
	}
	layers := []string{top, bottom}
	for path, content := range map[string]string{
		"/usr/lib/changed.so": "new", // the topmost wins
		"/usr/lib/kept.so":    "kept",
		"/usr/lib/link.so":    "kept",
	} {
		want := sha256.Sum256([]byte(content))
		got, err := new(digestCache).lower(layers, path)
		if err != nil || got.GetPath() != path || got.GetSize() != int64(len(content)) || !bytes.Equal(got.GetDigest(), want[:]) {
			t.Errorf("%s: got %v, %v", path, got, err)
		}
	}
	if _, err := new(digestCache).lower(layers, "/usr/lib/missing.so"); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "missing.so") {
		t.Errorf("a missing file: %v", err)
	}
	// An image must not make podd read the host's files.
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(top, "escape")); err != nil {
		t.Fatal(err)
	}
	if got, err := new(digestCache).lower(layers, "/escape"); err == nil {
		t.Errorf("a link out of the image was followed: %v", got)
	}
}

func TestCheckMapped(t *testing.T) {
	layer := writeTree(t, map[string]string{"same": "1", "differs": "2"})
	file := func(path, content string) *poddv1.MappedFile {
		sum := sha256.Sum256([]byte(content))
		return &poddv1.MappedFile{Path: path, Size: int64(len(content)), Digest: sum[:]}
	}
	check := func(files ...*poddv1.MappedFile) (problems []string) {
		t.Helper()
		err := new(digestCache).compare([]string{layer}, files, func(problem, remedy string) {
			if remedy == "" {
				t.Errorf("no remedy for: %s", problem)
			}
			problems = append(problems, problem)
		})
		if err != nil {
			t.Fatal(err)
		}
		return problems
	}
	if got := check(file("/same", "1")); len(got) != 0 {
		t.Errorf("equal files: %v", got)
	}
	// As long as the one on the source, which is all that CRIU would look at.
	got := check(file("/same", "1"), file("/differs", "3"), file("/missing", "4"))
	if len(got) != 2 || !strings.Contains(got[0], "/differs") || !strings.Contains(got[0], "not the same file") ||
		!strings.Contains(got[1], "/missing") || !strings.Contains(got[1], "is missing") {
		t.Errorf("got %q", got)
	}
	if got := check(slices.Repeat([]*poddv1.MappedFile{file("/missing", "4")}, 40)...); len(got) != 5 {
		t.Errorf("%d lines about one cause", len(got))
	}
}

func TestDiskUsage(t *testing.T) {
	dir := writeTree(t, map[string]string{"a/file": strings.Repeat("x", 100_000)})
	sparse := filepath.Join(dir, "sparse")
	if err := os.WriteFile(sparse, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(sparse, 1<<40); err != nil {
		t.Fatal(err)
	}
	// The space, not the length: a hole takes none.
	if got, err := diskUsage(dir); err != nil || got < 100_000 || got > 1<<20 {
		t.Errorf("got %d, %v", got, err)
	}
	if got, err := diskUsage(filepath.Join(dir, "none")); err != nil || got != 0 {
		t.Errorf("nothing takes %d, %v", got, err)
	}
}

func TestCheckSpace(t *testing.T) {
	d := &Daemon{settings: settings{Config: Config{Name: "b", StateDir: t.TempDir()}}}
	check := func(r *poddv1.CheckTargetRequest) (problems []string) {
		t.Helper()
		if err := d.checkSpace(r, func(problem, _ string) { problems = append(problems, problem) }); err != nil {
			t.Fatal(err)
		}
		return problems
	}
	if got := check(&poddv1.CheckTargetRequest{FileBytes: 1, MemoryBytes: 1}); len(got) != 0 {
		t.Errorf("a tiny pod: %q", got)
	}
	const huge = 1 << 60
	if got := check(&poddv1.CheckTargetRequest{FileBytes: huge}); len(got) != 1 || !strings.Contains(got[0], "no space") || !strings.Contains(got[0], d.StateDir) {
		t.Errorf("huge files: %q", got)
	}
	if got := check(&poddv1.CheckTargetRequest{MemoryBytes: huge}); len(got) != 1 || !strings.Contains(got[0], "not enough memory") {
		t.Errorf("huge memory: %q", got)
	}
}

func TestBlockedError(t *testing.T) {
	err := error(&blockedError{pod: "alice", blockers: []pod.Blocker{
		{PID: 7, Program: "node", Descriptor: 12, Problem: "an io_uring", Remedy: "start it with UV_USE_IO_URING=0"},
		{Descriptor: -1, Problem: "host b: no space", Remedy: "free some"},
	}})
	if !errors.Is(err, pod.ErrBlocked) {
		t.Error("it is not ErrBlocked")
	}
	for _, want := range []string{"alice", "node (pid 7, descriptor 12): an io_uring: start it with", "\n  host b: no space: free some"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in %q", want, err)
		}
	}
}

func TestCRIUVersion(t *testing.T) {
	for v, want := range map[int]string{40201: "4.2.1", 40200: "4.2.0", 31701: "3.17.1"} {
		if got := criuVersion(v); got != want {
			t.Errorf("%d: got %s, want %s", v, got, want)
		}
	}
}

func TestWithout(t *testing.T) {
	all := []string{"sse", "avx", "avx2"}
	if got := without(all, []string{"avx2", "sse", "other"}); !slices.Equal(got, []string{"avx"}) {
		t.Errorf("got %v", got)
	}
	if !slices.Equal(all, []string{"sse", "avx", "avx2"}) {
		t.Errorf("the argument was changed: %v", all)
	}
}

func TestMachine(t *testing.T) {
	var host pod.Host
	if err := describeMachine(&host); err != nil {
		t.Fatal(err)
	}
	if host.Kernel == "" || host.MemoryBytes < 64<<20 || host.CPUs < 1 || host.Version == "" {
		t.Errorf("got %+v", host)
	}
	free, err := availableMemory()
	if err != nil || free <= 0 || free > host.MemoryBytes {
		t.Errorf("%d of %d bytes of memory available: %v", free, host.MemoryBytes, err)
	}
}

// TestDigestCache: a digest is remembered for as long as the file is the same.
func TestDigestCache(t *testing.T) {
	layer := t.TempDir()
	name := filepath.Join(layer, "library")
	cache := new(digestCache)
	for _, content := range []string{"one", "two"} { // of the same size
		if err := os.WriteFile(name+".new", []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(name+".new", name); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			got, err := cache.lower([]string{layer}, "/library")
			if err != nil {
				t.Fatal(err)
			}
			if want := sha256.Sum256([]byte(content)); !bytes.Equal(got.GetDigest(), want[:]) {
				t.Errorf("%s: got %x, want %x", content, got.GetDigest(), want)
			}
		}
	}
	if len(cache.known) != 2 {
		t.Errorf("the cache has %d entries, want 2", len(cache.known))
	}
}
