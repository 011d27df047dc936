package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	criucore "github.com/checkpoint-restore/go-criu/v7/crit/images/criu-core"
	criufiles "github.com/checkpoint-restore/go-criu/v7/crit/images/fdinfo"
	criuinventory "github.com/checkpoint-restore/go-criu/v7/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/mnt"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/pstree"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/seccomp"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/tty"
	"google.golang.org/protobuf/proto"

	"podd/reserve"
)

// ImageStore takes the image files of one pod as they come: most of them in the page stream,
// while the source still writes others (DumpOptions.EarlyImages), and the rest after that. It
// decodes them meanwhile, which is most of their verification (Restore.Verify), and the pod stands still
// for what is done later. Nothing that comes is trusted.
//
// Its methods, and what it is given to, must be called one after the other.
type ImageStore struct {
	dir    string
	limits ImageLimits
	room   reserve.Meter
	// sizes are those of the files that have come, stats count them.
	sizes map[string]int64
	stats ImageStats

	mu sync.Mutex
	// queue is what is to be decoded, by decoding, which is one goroutine if busy.
	queue    []receivedImage
	busy     bool
	decoding sync.WaitGroup
	decoded  map[string]decodedImage
	// size is that of the images that were or will be decoded, in bytes.
	size int64
}

// maxDecoded bounds what is decoded as it comes, in bytes of images; messages may take a
// multiple of that. What is beyond is read when it is verified, and not kept.
const maxDecoded = 8 << 20

type receivedImage struct {
	name    string
	content []byte
}

// decodedImage is an image without unknown fields.
type decodedImage struct {
	magic    string
	messages []proto.Message
}

// NewImageStore returns a store of images in dir, which must exist.
func NewImageStore(dir string, limits ImageLimits) *ImageStore {
	return &ImageStore{dir: dir, limits: limits, sizes: map[string]int64{}, decoded: map[string]decodedImage{}}
}

// Receive takes the images that have not come in the page stream, from Dump.SendImages; for ctx see
// ReceivePages. It reads exactly what was sent. The result counts all images. On an error the
// files written so far stay: the caller removes the directory.
func (s *ImageStore) Receive(ctx context.Context, r io.Reader) (ImageStats, error) {
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return s.stats, fmt.Errorf("opening images directory: %w", err)
	}
	defer root.Close()
	defer interruptible(ctx, r)()
	err = s.receive(ctx, r, root)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return s.stats, fmt.Errorf("receiving images: %w", err)
	}
	return s.stats, nil
}

func (s *ImageStore) receive(ctx context.Context, r io.Reader, root *os.Root) error {
	head := make([]byte, headerSize)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := io.ReadFull(r, head); err != nil {
			return noEOF(err)
		}
		switch f := parseFrame(head); f.op {
		case opImage:
			if err := s.take(f, r, root); err != nil {
				return err
			}
		case opClose:
			if f.pages != uint64(s.stats.Files) {
				return fmt.Errorf("%w: there are %d images, not %d", ErrCorrupt, s.stats.Files, f.pages)
			}
			return nil
		default:
			return fmt.Errorf("unknown operation %#x among images", f.op)
		}
	}
}

// take takes an image, or a part of one, that follows its header.
func (s *ImageStore) take(f frame, r io.Reader, root *os.Root) error {
	if f.pages > smallImage || f.addr > maxImageName {
		return fmt.Errorf("%w: %d bytes of an image with a name of %d", ErrLimit, f.pages, f.addr)
	}
	if int64(f.pages) > s.limits.Bytes-s.stats.Bytes {
		return fmt.Errorf("%w: image files of more than %d bytes", ErrLimit, s.limits.Bytes)
	}
	content := make([]byte, f.addr+f.pages)
	if _, err := io.ReadFull(r, content); err != nil {
		return noEOF(err)
	}
	name, content := string(content[:f.addr]), content[f.addr:]
	if !imageName.MatchString(name) {
		return fmt.Errorf("%w: file name %q is not allowed", ErrCorrupt, name)
	}
	if err := s.put(root, name, content, f.flags&imageMore != 0); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// put writes an image, in the place of one with its name that came before, or behind that.
func (s *ImageStore) put(root *os.Root, name string, content []byte, more bool) error {
	size, known := s.sizes[name]
	if known || more {
		// What is known of it is not true any more, and must not become known later.
		s.decoding.Wait()
		delete(s.decoded, name)
	}
	switch {
	case more && !known:
		return fmt.Errorf("%w: it has no beginning", ErrCorrupt)
	case known && !more:
		if err := root.Remove(name); err != nil {
			return err
		}
		delete(s.sizes, name)
		s.stats.Files--
		s.stats.Bytes -= size
	}
	flags := os.O_CREATE | os.O_EXCL
	if more {
		flags = os.O_APPEND
	} else if s.stats.Files >= s.limits.Files {
		return fmt.Errorf("%w: more than %d image files", ErrLimit, s.limits.Files)
	}
	if err := writeImage(root, name, flags, content, &s.room); err != nil {
		return err
	}
	s.stats.Bytes += int64(len(content))
	if s.sizes[name] += int64(len(content)); !more {
		s.stats.Files++
		s.decode(name, content)
	}
	return nil
}

// writeImage writes to an image file, which it makes.
func writeImage(root *os.Root, name string, flags int, content []byte, room *reserve.Meter) error {
	f, err := root.OpenFile(name, flags|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err = room.Add(int(f.Fd()), int64(len(content)), 1); err != nil {
		err = fmt.Errorf("%w: %w", ErrLimit, err)
	} else {
		_, err = f.Write(content)
	}
	return errors.Join(err, f.Close())
}

// decode has an image decoded, beside what its caller does.
func (s *ImageStore) decode(name string, content []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.size += int64(len(content)); s.size > maxDecoded {
		return
	}
	s.queue = append(s.queue, receivedImage{name, content})
	if !s.busy {
		s.busy = true
		s.decoding.Go(s.run)
	}
}

func (s *ImageStore) run() {
	for {
		s.mu.Lock()
		if len(s.queue) == 0 {
			s.busy = false
			s.mu.Unlock()
			return
		}
		next := s.queue[0]
		s.queue = s.queue[1:]
		s.mu.Unlock()
		// What can't be decoded is refused when it is verified.
		if image, ok := decodeImage(next.name, next.content); ok {
			s.decoded[next.name] = image
		}
	}
}

// images returns what is decoded when everything is.
func (s *ImageStore) images() map[string]decodedImage {
	if s == nil {
		return nil
	}
	s.decoding.Wait()
	return s.decoded
}

// imageKinds are the images that a verifier reads, by the beginning of their names up to a dash.
var imageKinds = map[string]struct {
	magic   string
	message func() proto.Message
}{
	"core":        {"CORE", func() proto.Message { return new(criucore.CoreEntry) }},
	"fdinfo":      {"FDINFO", func() proto.Message { return new(criufiles.FdinfoEntry) }},
	"files":       {"FILES", func() proto.Message { return new(criufiles.FileEntry) }},
	"ids":         {"IDS", func() proto.Message { return new(criucore.TaskKobjIdsEntry) }},
	"inventory":   {"INVENTORY", func() proto.Message { return new(criuinventory.InventoryEntry) }},
	"mm":          {"MM", func() proto.Message { return new(mm.MmEntry) }},
	"mountpoints": {"MNTS", func() proto.Message { return new(mnt.MntEntry) }},
	"pstree":      {"PSTREE", func() proto.Message { return new(pstree.PstreeEntry) }},
	"seccomp":     {"SECCOMP", func() proto.Message { return new(seccomp.SeccompEntry) }},
	"tty":         {"TTY_INFO", func() proto.Message { return new(tty.TtyInfoEntry) }},
}

// decodeImage decodes an image, if it is one that a verifier reads and without fault.
func decodeImage(name string, content []byte) (image decodedImage, ok bool) {
	begin, _, _ := strings.Cut(strings.TrimSuffix(name, ".img"), "-")
	kind, known := imageKinds[begin]
	if !known {
		return image, false
	}
	image.magic = kind.magic
	rest, err := headerOf(name, kind.magic, content)
	for err == nil && len(rest) > 0 {
		m := kind.message()
		rest, err = entryOf(name, rest, m)
		image.messages = append(image.messages, m)
	}
	return image, err == nil
}
