package podd

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	poddv1 "podd/api/podd/v1"
)

// maxDigests bounds the cache. A desktop maps a few hundred files, and the pods
// of a host map mostly the same.
const maxDigests = 100_000

// digestCache knows the digests of files in read-only layers. Libraries are
// large, and forty desktops that leave a host map the same ones.
type digestCache struct {
	mu    sync.Mutex
	known map[fileIdentity][sha256.Size]byte
}

// fileIdentity changes whenever a file's content does: ctime can't be set.
type fileIdentity struct {
	dev, ino uint64
	size     int64
	ctime    unix.Timespec
}

// lower describes the file at path in a stack of layers, topmost first. The
// error wraps fs.ErrNotExist when it is in none.
func (c *digestCache) lower(layers []string, path string) (*poddv1.MappedFile, error) {
	for _, layer := range layers {
		root, err := os.OpenRoot(layer)
		if err != nil {
			return nil, fmt.Errorf("opening a layer: %w", err)
		}
		file, err := c.file(root, strings.TrimPrefix(path, "/"))
		root.Close()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		file.Path = path
		return file, nil
	}
	return nil, fmt.Errorf("%s: %w", path, fs.ErrNotExist)
}

func (c *digestCache) file(root *os.Root, name string) (*poddv1.MappedFile, error) {
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("looking at %s: %w", name, err)
	}
	identity := fileIdentity{dev: st.Dev, ino: st.Ino, size: st.Size, ctime: st.Ctim}
	c.mu.Lock()
	digest, known := c.known[identity]
	c.mu.Unlock()
	if !known {
		hash := sha256.New()
		if _, err := io.Copy(hash, f); err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		digest = [sha256.Size]byte(hash.Sum(nil))
		c.keep(identity, digest)
	}
	return &poddv1.MappedFile{Size: st.Size, Digest: digest[:]}, nil
}

func (c *digestCache) keep(identity fileIdentity, digest [sha256.Size]byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || len(c.known) >= maxDigests {
		c.known = map[fileIdentity][sha256.Size]byte{}
	}
	c.known[identity] = digest
}

// compare blocks a move for each file that is not here what it is on the source.
func (c *digestCache) compare(layers []string, files []*poddv1.MappedFile, block func(problem, remedy string)) error {
	const most = 5 // one difference usually means many: a package of another version
	different := 0
	for _, want := range files {
		got, err := c.lower(layers, want.GetPath())
		switch {
		case errors.Is(err, fs.ErrNotExist):
			block(want.GetPath()+", which the pod runs from, is missing", "install the same packages on both hosts, or run the pod from an image")
		case err != nil:
			return err
		case got.GetSize() != want.GetSize() || !bytes.Equal(got.GetDigest(), want.GetDigest()):
			block(want.GetPath()+", which the pod runs from, is not the same file as on the source", "install the same packages on both hosts, or run the pod from an image")
		default:
			continue
		}
		if different++; different == most {
			return nil
		}
	}
	return nil
}
