package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"podd/pod"
)

// Remove takes away a name of an image, and with the last name, or if name is
// a digest, the image and those of its layers that no other image has. The
// error wraps pod.ErrNotFound, or pod.ErrConflict if the image is in use.
func (s *Store) Remove(ctx context.Context, name string) error {
	if name == HostName || strings.HasPrefix(name, DirPrefix) {
		return fmt.Errorf("%w: image %s is not in the store, there is nothing to remove", pod.ErrInvalid, name)
	}
	done, err := s.change(ctx)
	if err != nil {
		return fmt.Errorf("removing image %s: %w", name, err)
	}
	defer done()
	next := s.snapshot()
	i, called, err := find(next.Images, name)
	if err != nil {
		return err
	}
	r := &next.Images[i]
	if slices.Contains(r.Names, called) && len(r.Names) > 1 {
		r.Names = slices.DeleteFunc(r.Names, func(n string) bool { return n == called })
		s.log.Info("image name removed", "image", called, "digest", r.Digest)
		return s.writeIndex(next)
	}
	digest := r.Digest
	release, users, err := s.claim(digest)
	if err != nil {
		return fmt.Errorf("removing image %s: %w", name, err)
	}
	defer release()
	if users != nil {
		return fmt.Errorf("%w: image %s is in use by %s", pod.ErrConflict, called, strings.Join(users, ", "))
	}
	next.Images = slices.Delete(next.Images, i, i+1)
	if err := s.writeIndex(next); err != nil {
		return fmt.Errorf("removing image %s: %w", name, err)
	}
	s.log.Info("image removed", "image", called, "digest", digest)
	return s.collect()
}

// claim stops the image from being acquired until release is called, and
// returns who uses it; nil means nobody.
//
// It first stops new acquisitions and then asks for the pods: whoever acquired
// and released before that is among the pods by then.
func (s *Store) claim(digest string) (release func(), users []string, err error) {
	s.mu.Lock()
	held := s.acquired[digest] > 0
	s.claimed[digest] = true
	s.mu.Unlock()
	release = func() {
		s.mu.Lock()
		delete(s.claimed, digest)
		s.mu.Unlock()
	}
	if held {
		return release, []string{"a pod being created"}, nil
	}
	if s.inUse == nil {
		return release, nil, nil
	}
	all, err := s.inUse()
	if err != nil {
		release()
		return nil, nil, fmt.Errorf("finding the pods that use it: %w", err)
	}
	if names, used := all[digest]; used {
		return release, append([]string{}, names...), nil
	}
	return release, nil, nil
}

// collectUnused deletes the images that have no name and no user, and layers
// that no image has.
func (s *Store) collectUnused() error {
	next := s.snapshot()
	var gone []string
	for _, r := range next.Images {
		if len(r.Names) > 0 {
			continue
		}
		release, users, err := s.claim(r.Digest)
		if err != nil {
			return err
		}
		defer release()
		if users == nil {
			gone = append(gone, r.Digest)
		}
	}
	if len(gone) > 0 {
		next.Images = slices.DeleteFunc(next.Images, func(r record) bool { return slices.Contains(gone, r.Digest) })
		if err := s.writeIndex(next); err != nil {
			return err
		}
		s.log.Info("unnamed images removed", "digests", gone)
	}
	return s.collect()
}

// collect deletes the layers that no image has.
func (s *Store) collect() error {
	wanted := map[string]bool{}
	for _, r := range s.snapshot().Images {
		for _, l := range r.Layers {
			wanted[s.layerDir(l.DiffID)] = true
		}
	}
	dirs, err := filepath.Glob(s.path("layers", "*", "*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if wanted[dir] {
			continue
		}
		if err := s.discard(dir); err != nil {
			return fmt.Errorf("removing layer %s: %w", dir, err)
		}
		s.log.Debug("layer removed", "layer", v1.Hash{Algorithm: filepath.Base(filepath.Dir(dir)), Hex: filepath.Base(dir)})
	}
	return nil
}

// discard deletes a layer, if it is there: under another name, so that a layer
// with its own name is always whole.
func (s *Store) discard(layer string) error {
	tmp, err := os.MkdirTemp(s.path("tmp"), "discard-")
	if err != nil {
		return err
	}
	err = os.Rename(layer, filepath.Join(tmp, "layer"))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, removeTree(tmp))
}

func (s *Store) removeContent(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// removeTree is os.RemoveAll that also deletes what is in directories without
// write permission, which without root stop os.RemoveAll.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil || !errors.Is(err, os.ErrPermission) {
		return err
	}
	walk := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			return os.Chmod(path, 0o700)
		}
		return nil
	})
	return errors.Join(walk, os.RemoveAll(dir))
}
