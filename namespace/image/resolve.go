package image

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"podd/pod"
)

// minDigestPrefix is the fewest hexadecimal digits of a digest that stand for
// it; Docker and podman show twelve.
const minDigestPrefix = 6

// Resolve finds an image by what a user calls it: "host", "dir:/path", a name
// in any spelling, a digest, or the first six or more digits of one. The error
// wraps pod.ErrNotFound, and then says what there is, or pod.ErrInvalid.
func (s *Store) Resolve(name string) (Image, error) {
	if name == HostName {
		return Image{Name: HostName}, nil
	}
	if path, ok := strings.CutPrefix(name, DirPrefix); ok {
		return resolveDir(path)
	}
	images := s.snapshot().Images
	i, called, err := find(images, name)
	if err != nil {
		return Image{}, err
	}
	return s.image(images[i], called), nil
}

// Acquire resolves name and keeps the image from being removed until release
// is called: for the time between choosing an image for a pod and the pod's
// appearing in Options.InUse.
func (s *Store) Acquire(name string) (img Image, release func(), err error) {
	if name == HostName || strings.HasPrefix(name, DirPrefix) {
		img, err := s.Resolve(name)
		return img, func() {}, err
	}
	// The lookup and the count are under one lock, so a removal, which decides
	// under it too, comes either before both or after both.
	s.mu.Lock()
	defer s.mu.Unlock()
	i, called, err := find(s.index.Images, name)
	if err != nil {
		return Image{}, nil, err
	}
	img = s.image(s.index.Images[i], called)
	if s.claimed[img.Digest] {
		return Image{}, nil, fmt.Errorf("%w: image %s is being removed", pod.ErrConflict, called)
	}
	s.acquired[img.Digest]++
	released := false
	return img, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if released {
			return
		}
		released = true
		if s.acquired[img.Digest]--; s.acquired[img.Digest] == 0 {
			delete(s.acquired, img.Digest)
		}
	}, nil
}

// List returns the images in the store, sorted by name. The built-in ones are
// not among them.
func (s *Store) List() []Image {
	var list []Image
	for _, r := range s.snapshot().Images {
		name := ""
		if len(r.Names) > 0 {
			name = r.Names[0]
		}
		list = append(list, s.image(r, name))
	}
	slices.SortFunc(list, func(a, b Image) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.Digest, b.Digest)
	})
	return list
}

// find returns the index of the image called name and the name to show.
func find(images []record, name string) (i int, called string, err error) {
	if i, err := findDigest(images, name); i >= 0 || err != nil {
		return i, name, err
	}
	canonical, err := CanonicalName(name)
	if err != nil {
		return -1, "", err
	}
	for i, r := range images {
		if slices.Contains(r.Names, canonical) {
			return i, canonical, nil
		}
	}
	return -1, "", notFound(images, canonical)
}

// findDigest returns -1 and no error if name is no digest of an image.
func findDigest(images []record, name string) (int, error) {
	prefix := strings.TrimPrefix(name, "sha256:")
	if len(prefix) < minDigestPrefix || strings.Trim(prefix, "0123456789abcdef") != "" {
		return -1, nil
	}
	found := -1
	for i, r := range images {
		if !strings.HasPrefix(r.Digest, "sha256:"+prefix) {
			continue
		}
		if found >= 0 {
			return -1, fmt.Errorf("%w: image %s: several images begin so; give more digits", pod.ErrInvalid, name)
		}
		found = i
	}
	if found < 0 && prefix != name {
		return -1, notFound(images, name)
	}
	return found, nil
}

func notFound(images []record, name string) error {
	have := []string{HostName, DirPrefix + "/PATH"}
	for _, r := range images {
		have = append(have, r.Names...)
	}
	slices.Sort(have[2:])
	return fmt.Errorf("image %s: %w: there is %s; import another with: podctl image import ARCHIVE", name, pod.ErrNotFound, strings.Join(have, ", "))
}

// resolveDir checks that path can be a lower layer. Symbolic links are
// resolved now, so that every later mount uses the same directory.
func resolveDir(path string) (Image, error) {
	name := DirPrefix + path
	if !filepath.IsAbs(path) {
		return Image{}, fmt.Errorf("%w: image %s: want an absolute path", pod.ErrInvalid, name)
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		if os.IsNotExist(err) {
			return Image{}, fmt.Errorf("image %s: %w: no such directory on this host", name, pod.ErrNotFound)
		}
		return Image{}, fmt.Errorf("image %s: %w", name, err)
	}
	info, err := os.Stat(real)
	if err != nil {
		return Image{}, fmt.Errorf("image %s: %w", name, err)
	}
	switch {
	case !info.IsDir():
		return Image{}, fmt.Errorf("%w: image %s: not a directory; an archive is imported first: podctl image import %s", pod.ErrInvalid, name, path)
	case real == "/":
		return Image{}, fmt.Errorf("%w: image %s: the host's root directory is the image %q", pod.ErrInvalid, name, HostName)
	case strings.ContainsAny(real, ":,\\"):
		return Image{}, fmt.Errorf("%w: image %s: the path must not contain ':', ',' or '\\': overlay mounts can't express it", pod.ErrInvalid, name)
	}
	return Image{Name: name, Layers: []string{real}}, nil
}
