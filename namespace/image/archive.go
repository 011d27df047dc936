package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"podd/pod"
)

// archive is read access to the files of an image archive, by slash-separated
// path. The error of open wraps fs.ErrNotExist if there is no such file.
type archive interface {
	open(name string) (io.ReadCloser, error)
	close() error
}

// dirArchive is an OCI layout in a directory. os.Root keeps names and symbolic
// links from leading out of it.
type dirArchive struct{ root *os.Root }

func (a dirArchive) open(name string) (io.ReadCloser, error) {
	// O_NONBLOCK: a FIFO must not make us wait for a writer.
	f, err := a.root.OpenFile(name, os.O_RDONLY|oNonblock, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", name)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (a dirArchive) close() error { return a.root.Close() }

// tarArchive is an uncompressed tar file whose members are read in place.
type tarArchive struct {
	file    *os.File
	members map[string]member
}

type member struct {
	offset, size int64
	// target is where a link leads, empty for a file: docker save before
	// version 25 links equal layers.
	target string
}

// maxMembers bounds the memory that the table of contents of a tar file takes.
const maxMembers = 100_000

// newTarArchive reads the table of contents of file, which it owns from then
// on, also on error.
func newTarArchive(ctx context.Context, file *os.File) (_ *tarArchive, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	a := &tarArchive{file: file, members: map[string]member{}}
	// archive/tar reads whole blocks and seeks over content, so after Next the
	// file stands at the start of the member's content.
	r := tar.NewReader(file)
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := r.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: reading tar archive: %w", pod.ErrInvalid, err)
		}
		if len(a.members) == maxMembers {
			return nil, fmt.Errorf("%w: archive has more than %d members", pod.ErrInvalid, maxMembers)
		}
		name := clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			offset, err := file.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			a.members[name] = member{offset: offset, size: h.Size}
		case tar.TypeSymlink:
			a.members[name] = member{target: clean(path.Join(path.Dir(name), h.Linkname))}
		case tar.TypeLink:
			a.members[name] = member{target: clean(h.Linkname)}
		}
	}
}

// clean makes a name of a member relative to the archive, whatever it was.
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (a *tarArchive) open(name string) (io.ReadCloser, error) {
	name = clean(name)
	for range 8 {
		m, ok := a.members[name]
		if !ok {
			return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
		}
		if m.target == "" {
			return io.NopCloser(io.NewSectionReader(a.file, m.offset, m.size)), nil
		}
		name = m.target
	}
	return nil, fmt.Errorf("%w: %s: too many links", pod.ErrInvalid, name)
}

func (a *tarArchive) close() error { return a.file.Close() }

// openArchive opens what src names: the directory of an OCI layout, or a tar
// file, compressed or not. A compressed one is expanded into a file in tmp
// that has no name, since its members are not read in order.
func openArchive(ctx context.Context, src, tmp string, maxBytes int64) (archive, error) {
	if strings.HasPrefix(src, DirPrefix) {
		return nil, fmt.Errorf("%w: image %s needs no import: give it as it is to podctl run --image", pod.ErrInvalid, src)
	}
	file, err := os.OpenFile(src, os.O_RDONLY|oNonblock, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: %w: no such file or directory on this host", src, pod.ErrNotFound)
		}
		return nil, err
	}
	info, err := file.Stat()
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	switch {
	case info.IsDir():
		if err := file.Close(); err != nil {
			return nil, err
		}
		root, err := os.OpenRoot(src)
		if err != nil {
			return nil, err
		}
		return dirArchive{root}, nil
	case !info.Mode().IsRegular():
		return nil, errors.Join(fmt.Errorf("%w: %s is neither a file nor a directory", pod.ErrInvalid, src), file.Close())
	}
	plain, err := expand(ctx, file, tmp, maxBytes)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("expanding %s: %w", src, err), file.Close())
	}
	return newTarArchive(ctx, plain)
}

// expand returns file itself if it is not compressed, else its expansion, and
// then closes it.
func expand(ctx context.Context, file *os.File, tmp string, maxBytes int64) (_ *os.File, err error) {
	r, compressed, err := decompress(file)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if !compressed {
		_, err := file.Seek(0, io.SeekStart)
		return file, err
	}
	out, err := os.CreateTemp(tmp, "archive-")
	if err != nil {
		return nil, err
	}
	n, err := io.Copy(out, io.LimitReader(contextReader{ctx, r}, maxBytes+1))
	if err == nil && n > maxBytes {
		err = fmt.Errorf("%w: it expands to more than %d bytes", pod.ErrInvalid, maxBytes)
	}
	if err == nil {
		_, err = out.Seek(0, io.SeekStart)
	}
	// From here on the descriptor alone keeps the content.
	if err := errors.Join(err, os.Remove(out.Name())); err != nil {
		return nil, errors.Join(noSpace(err), out.Close())
	}
	return out, file.Close()
}

// readAll reads a small file of the archive whole.
func readAll(a archive, name string, max int64) ([]byte, error) {
	r, err := a.open(name)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, max+1))
	if err = errors.Join(err, r.Close()); err != nil {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if int64(len(data)) > max {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", pod.ErrInvalid, name, max)
	}
	return data, nil
}
