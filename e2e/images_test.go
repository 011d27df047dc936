//go:build e2e

package e2e

import (
	"archive/tar"
	"bytes"
	_ "embed"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

//go:embed testdata/files.py
var filesProgram string

// buildStatic compiles a C program of testdata into one that needs no library.
func buildStatic(t *testing.T, source string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if out, err := exec.CommandContext(bounded(t), "cc", "-static", "-O2", "-Wall", "-Wextra", "-o", path, filepath.Join("testdata", source)).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// makeLayer makes a layer of files, by name.
func makeLayer(t *testing.T, files map[string][]byte) v1.Layer {
	t.Helper()
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data.Bytes())), nil }, tarball.WithMediaType(types.OCILayer))
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// makeServerImage makes an image of two layers that runs lined; greeting tells
// images apart.
func makeServerImage(t *testing.T, greeting string) v1.Image {
	t.Helper()
	base := makeLayer(t, map[string][]byte{"bin/lined": buildStatic(t, "lined.c"), "etc/greeting": []byte("below\n"), "etc/gone": []byte("gone\n")})
	top := makeLayer(t, map[string][]byte{"etc/greeting": []byte(greeting + "\n"), "etc/.wh.gone": nil})
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.AppendLayers(img, base, top)
	if err != nil {
		t.Fatal(err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	config.Config = v1.Config{Entrypoint: []string{"/bin/lined"}, Cmd: []string{"image", "7000"}, Env: []string{"FLAVOUR=sweet"}, User: "1000:1000"}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		t.Fatal(err)
	}
	return img
}

// importImage imports an image on a host; the test's end removes it. Pods that
// use it must be made later, so that they go earlier.
func importImage(t *testing.T, host, name, path string) {
	t.Helper()
	mustPodctl(t, "image", "import", "--host", host, name, path)
	t.Cleanup(func() { mustPodctl(t, "image", "rm", "--host", host, name) })
}

// An image, however it is packed, runs, and moves once it is there.
func TestImages(t *testing.T) {
	for kind, pack := range map[string]func(t *testing.T, img v1.Image) string{
		"layout":  packLayout,
		"archive": packArchive,
	} {
		t.Run(kind, func(t *testing.T) {
			path := pack(t, makeServerImage(t, kind))
			image := "server-" + kind
			importImage(t, "a", image, path)
			if got := mustPodctl(t, "image", "ls", "-o", "name"); !strings.Contains(got, image) {
				t.Errorf("image ls says %q", got)
			}
			imported := false
			t.Cleanup(func() {
				if imported {
					mustPodctl(t, "image", "rm", "--host", "b", image)
				}
			})
			p := newPod(t, "", "--image", image)
			address := p.awaitPort(7000)
			conn := dialLines(t, address)
			for line, want := range map[string]string{"cat /etc/greeting": kind, "cat /etc/gone": "No such file or directory", "env FLAVOUR": "sweet"} {
				if got := conn.ask(line); !strings.HasSuffix(got, " "+want) {
					t.Errorf("%s: reply %q, want %q", line, got, want)
				}
			}
			requireRefused(t, codeError, []string{image, p.name}, "image", "rm", image)

			// Not on the other host yet.
			words := []string{"host b", image, "not found", "podctl image import --host b"}
			requireRefused(t, codeNotMovable, words, "move", "--dry-run", p.name, "b")
			requireRefused(t, codeError, append(words, p.name+" goes on running on a"), "move", p.name, "b")
			requireTidy(t)
			conn.ask("still there")

			mustPodctl(t, "image", "import", "--host", "b", image, path)
			imported = true
			busy := keepAsking(t, address, countedBy("image"))
			p.move("b")
			busy.stop()
			if got := conn.ask("cat /etc/greeting"); !strings.HasSuffix(got, " "+kind) {
				t.Errorf("after the move the reply is %q", got)
			}
		})
	}
}

// packLayout writes an OCI layout.
func packLayout(t *testing.T, img v1.Image) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	l, err := layout.Write(dir, empty.Index)
	if err == nil {
		err = l.AppendImage(img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// packArchive writes what docker save does.
func packArchive(t *testing.T, img v1.Image) string {
	t.Helper()
	tag, err := name.NewTag("example.com/server:1")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "server.tar")
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		t.Fatal(err)
	}
	return path
}

// Whatever is no image is refused with nothing left of it.
func TestBadImages(t *testing.T) {
	for name, test := range map[string]struct{ path, words string }{
		"no file":  {"/nowhere/image.tar", "no such file"},
		"no image": {workFile(t, "text", strings.Repeat("no image\n", 1000), 0o644), "text"},
		"empty":    {workFile(t, "empty", "", 0o644), "empty"},
		"no dir":   {t.TempDir(), "layout"},
	} {
		t.Run(name, func(t *testing.T) {
			requireRefused(t, codeError, []string{"broken"}, "image", "import", "broken", test.path)
			if got := mustPodctl(t, "image", "ls", "-o", "name"); strings.Contains(got, "broken") {
				t.Errorf("image ls says %q", got)
			}
			requireTidy(t)
		})
	}
	requireRefused(t, codeError, []string{"not found", "podctl image ls"}, "image", "rm", "nothing")
}

// A directory is an image, too; pods don't write to it.
func TestDirectoryImage(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string][]byte{"bin/lined": buildStatic(t, "lined.c"), "etc/greeting": []byte("from a directory\n")} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := newPod(t, "", "--image", "dir:"+dir, "--", "/bin/lined", "dir", "7000")
	conn := dialLines(t, p.awaitPort(7000))
	for i, host := range []string{"b", "c"} {
		p.move(host)
		if got := conn.ask("cat /etc/greeting"); !strings.HasSuffix(got, " from a directory") {
			t.Errorf("after move %d the reply is %q", i+1, got)
		}
	}
	var found []string
	for _, pattern := range []string{"*", "*/*"} {
		matches, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, matches...)
	}
	if len(found) != 4 { // bin, etc and their files
		t.Errorf("the directory has become %v", found)
	}
}

// Everything a program can do to its files survives two moves: in the writable
// layer, on the tmpfs of /tmp and in a volume of its own.
func TestFiles(t *testing.T) {
	p := newPod(t, "", "-v", "data:/data", "--", "/usr/bin/python3", "-c", filesProgram, "7000", "/var/lib/files", "/tmp/files", "/dev/shm/files", "/run/files", "/data/files")
	conn := dialLines(t, p.awaitPort(7000))
	if got := conn.ask("check"); got != "ok" {
		t.Fatalf("before any move: %s", got)
	}
	for _, host := range []string{"b", "c"} {
		p.move(host)
		for _, difference := range strings.Split(conn.ask("check"), " | ") {
			if difference != "ok" {
				t.Errorf("on host %s: %s", host, difference)
			}
		}
	}
}

// Volumes of each policy. All hosts of a lab see the same directories, as hosts
// with shared storage do.
func TestVolumes(t *testing.T) {
	shared := t.TempDir()
	if err := os.WriteFile(filepath.Join(shared, "file"), []byte("shared\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	p := newPod(t, "", "-v", shared+":/shared", "-v", shared+":/readonly:share,ro", "-v", "own:/own", "-v", "copied:/copied:copy", "-v", shared+":/rebound:rebind",
		"--", "/usr/bin/python3", "-c", pythonServer, "volumes", "7000")
	conn := dialLines(t, p.awaitPort(7000))
	p.shell("echo own > /own/file; echo copied > /copied/file; echo more >> /shared/file")
	if r := podctl(t, "exec", p.name, "--", "sh", "-c", "echo x > /readonly/new"); r.code == 0 || !strings.Contains(r.stderr, "Read-only file system") {
		t.Errorf("writing to a read-only volume: exit code %d, %q", r.code, r.stderr)
	}
	const content = "own\ncopied\nshared\nmore\nshared\nmore\nshared\nmore"
	const show = "cat /own/file /copied/file /shared/file /readonly/file /rebound/file"
	for _, host := range []string{"b", "c"} {
		p.move(host)
		conn.ask("hello")
		if got := p.shell(show); got != content {
			t.Errorf("on host %s the volumes have %q, want %q", host, got, content)
		}
		if r := podctl(t, "exec", p.name, "--", "sh", "-c", "echo x > /readonly/new"); r.code == 0 {
			t.Errorf("on host %s the read-only volume is writable", host)
		}
	}
	p.shell("echo from c >> /shared/file")
	if data, err := os.ReadFile(filepath.Join(shared, "file")); err != nil || string(data) != "shared\nmore\nfrom c\n" {
		t.Errorf("the shared directory's file is %q, %v", data, err)
	}
}
