package image

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fuzzUnpack unpacks a tar stream next to a canary. Nothing may get out of the
// layer, whatever happens in it.
func fuzzUnpack(t *testing.T, data []byte) {
	dir := filepath.Join(t.TempDir(), "outer", "layer")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := removeTree(dir); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(filepath.Join(filepath.Dir(dir), "canary"), []byte("canary"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := snapshotOutside(t, dir)
	limits := Limits{Entries: 200, LayerBytes: 1 << 20}.withDefaults()
	if _, err := unpack(context.Background(), bytes.NewReader(data), dir, limits, quiet); err != nil {
		t.Log(err)
	}
	if after := snapshotOutside(t, dir); after != before {
		t.Errorf("outside of the layer:\n%s\nwas\n%s", after, before)
	}
	checkNoOverlayAttributes(t, dir)
}

// FuzzUnpackStream feeds damaged tar streams.
func FuzzUnpackStream(f *testing.F) {
	f.Add(makeTar(f,
		entry{name: "a/"}, entry{name: "a/b", content: "b"}, entry{name: "l", typ: tar.TypeSymlink, link: "../x"},
		entry{name: "h", typ: tar.TypeLink, link: "a/b"}, entry{name: "l/y", content: "y"}))
	f.Add(makeTar(f, entry{name: "d/"}, entry{name: "d/.wh..wh..opq"}, entry{name: "d/.wh.x"}, entry{name: ".wh.d"}))
	f.Add(makeTar(f, entry{name: "f", typ: tar.TypeFifo}, entry{name: "x", pax: map[string]string{paxXattr + "trusted.overlay.redirect": "/"}}))
	f.Fuzz(fuzzUnpack)
}

// FuzzUnpackEntries makes well-formed streams of hostile entries: three bytes
// choose the type, the name and the target of one.
func FuzzUnpackEntries(f *testing.F) {
	types := []byte{tar.TypeReg, tar.TypeDir, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo}
	names := []string{"a", "b", "c", "canary", "a/b", "b/a", "a/b/c", "a/canary", "b/canary", "a/b/canary", "/a", "./b",
		"../canary", ".wh.a", ".wh.canary", "a/.wh.b", "a/.wh..wh..opq", "a/.wh.canary", ".wh..wh..opq", "."}
	targets := []string{"..", "../..", "a", "b", "/", "/b", "../canary", "a/b", ".", "c", "../../outer", "/proc/self/root"}
	f.Add([]byte{2, 0, 0, 0, 7, 0})                             // a -> .., a/canary
	f.Add([]byte{2, 0, 8, 2, 4, 0, 0, 8, 0})                    // a -> ., a/b -> .., b/canary
	f.Add([]byte{2, 0, 0, 3, 1, 6, 0, 1, 0, 1, 0, 0, 0, 17, 0}) // hard links and whiteouts through links
	f.Fuzz(func(t *testing.T, program []byte) {
		var entries []entry
		for ; len(program) >= 3 && len(entries) < 64; program = program[3:] {
			e := entry{
				typ:  types[int(program[0])%len(types)],
				name: names[int(program[1])%len(names)],
				mode: 0o777,
			}
			switch e.typ {
			case tar.TypeReg:
				e.content = "x"
			case tar.TypeSymlink, tar.TypeLink:
				e.link = targets[int(program[2])%len(targets)]
			case tar.TypeDir:
				e.name += "/"
			}
			entries = append(entries, e)
		}
		fuzzUnpack(t, makeTar(t, entries...))
	})
}

// FuzzArchive reads what a tar archive says of images.
func FuzzArchive(f *testing.F) {
	f.Add(makeTar(f, entry{name: "oci-layout", content: `{"imageLayoutVersion":"1.0.0"}`}, entry{name: "index.json", content: `{"manifests":[]}`}))
	f.Add(makeTar(f, entry{name: "manifest.json", content: `[{"Config":"c.json","RepoTags":["a:b"],"Layers":["l.tar"]}]`},
		entry{name: "c.json", content: `{"rootfs":{"type":"layers","diff_ids":["sha256:00"]}}`}, entry{name: "l.tar", typ: tar.TypeSymlink, link: "../../l.tar"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(t.TempDir(), "image.tar")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := openArchive(context.Background(), path, t.TempDir(), 1<<20)
		if err != nil {
			return
		}
		defer a.close()
		checkSources(t, a)
	})
}

// files is an archive of the files in it.
type files map[string]string

func (a files) open(name string) (io.ReadCloser, error) {
	content, ok := a[clean(name)]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(strings.NewReader(content)), nil
}

func (a files) close() error { return nil }

// FuzzLayout reads an OCI layout. In the index "@" stands for the digest of the
// manifest, in the manifest for that of the configuration, so that the parsers
// behind the digests are reached.
func FuzzLayout(f *testing.F) {
	const index = `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"@","size":10,"annotations":{"org.opencontainers.image.ref.name":"a"}}]}`
	const manifest = `{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"@","size":2},"layers":[]}`
	f.Add(index, manifest, `{"architecture":"amd64","os":"linux","config":{"Env":["A=b"],"Cmd":["x"]},"rootfs":{"type":"layers","diff_ids":[]}}`)
	f.Add(index, index, `{}`)
	f.Fuzz(func(t *testing.T, index, manifest, config string) {
		a := files{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`}
		put := func(content string) string {
			h := sha256.Sum256([]byte(content))
			digest := hex.EncodeToString(h[:])
			a["blobs/sha256/"+digest] = content
			return "sha256:" + digest
		}
		manifest = strings.ReplaceAll(manifest, "@", put(config))
		a["index.json"] = strings.ReplaceAll(index, "@", put(manifest))
		checkSources(t, a)
	})
}

// checkSources reads an archive and uses what was found in it as an import does.
func checkSources(t *testing.T, a archive) {
	found, err := readArchive(a, "base", 1<<20)
	if err != nil {
		return
	}
	source, names, err := choose(found, "", "base")
	if err != nil {
		return
	}
	for _, name := range names {
		if name == "" {
			t.Errorf("a source %+v without a name", source)
		}
	}
}
