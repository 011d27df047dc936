package sharedmem

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

const (
	// chunkPages is how many pages are read, compared and remembered together, by
	// the bits of one word.
	chunkPages = 64
	chunkSize  = chunkPages * pageSize
	// maxPages bounds what is remembered, 17 bytes a page.
	maxPages = 64 << 30 / pageSize

	// maxPasses bounds how often segments are compared while the pod runs; fewBytes
	// that change in a pass make another one pointless, and so does one in which more
	// than shrinking of what changed before has changed again.
	maxPasses = 6
	fewBytes  = 1 << 20
	shrinking = 0.7
)

// Sink is what a Source sends to. Pages and Hole are about a segment that was begun, and
// lie within its size, but for the end of its last page. A Source calls it from several
// goroutines at a time.
type Sink interface {
	// Segment begins a segment, or says its new size.
	Segment(s Segment) error
	// Pages gives the content of whole pages.
	Pages(id uint64, offset int64, content []byte) error
	// Hole says that there is nothing.
	Hole(id uint64, offset, length int64) error
	// Drop says that a segment is not wanted any more.
	Drop(id uint64) error
}

// PassStats say what a pass did, in bytes of memory.
type PassStats struct {
	Segments int
	// Scanned is what the segments hold, Changed what of it was new or other than
	// before, and so was sent.
	Scanned, Changed int64
	Duration         time.Duration
}

// Source sends the shared memory of one pod in one move. Its methods are called one
// after the other.
type Source struct {
	cgroup string
	dev    uint64
	seed   uint64
	// segments are those of the last pass, by inode.
	segments map[uint64]*segment
	frozen   bool
}

// chunk is what the target has of 256 KiB of a segment.
type chunk struct {
	known uint64 // pages whose content, with this hash, was sent
	hash  [chunkPages]xxh3.Uint128
}

// NewSource returns a Source for the processes of a cgroup, by its directory. Of their
// memory nothing is at the target yet.
func NewSource(cgroup string) (*Source, error) {
	dev, err := kernelMount()
	if err != nil {
		return nil, fmt.Errorf("preparing to carry shared memory: %w", err)
	}
	// The hashes can't be foreseen by what runs in the pod.
	return &Source{cgroup: cgroup, dev: dev, seed: rand.Uint64()}, nil
}

// Size returns how much memory the processes of a cgroup share, in bytes, as far as it
// would be carried.
func Size(cgroup string) (bytes int64, err error) {
	dev, err := kernelMount()
	if err != nil {
		return 0, fmt.Errorf("measuring shared memory: %w", err)
	}
	found, err := find(cgroup, dev)
	if err != nil {
		return 0, err
	}
	defer closeAll(found)
	for _, s := range found {
		var st unix.Stat_t
		if unix.Fstat(int(s.file.Fd()), &st) == nil {
			bytes += st.Blocks * 512
		}
	}
	return bytes, nil
}

// Send makes passes over the memory of the running pod until little changes in one, or
// they don't get shorter. The stats are of all together, Scanned of the last.
func (s *Source) Send(ctx context.Context, out Sink) (PassStats, error) {
	var all PassStats
	last := int64(0)
	for n := range maxPasses {
		stats, err := s.pass(ctx, out)
		all.Segments, all.Scanned = stats.Segments, stats.Scanned
		all.Changed += stats.Changed
		all.Duration += stats.Duration
		if err != nil {
			return all, err
		}
		if stats.Changed <= fewBytes || n > 0 && float64(stats.Changed) > shrinking*float64(last) {
			break
		}
		last = stats.Changed
	}
	return all, nil
}

// pass finds the segments, and sends what is new or changed.
func (s *Source) pass(ctx context.Context, out Sink) (PassStats, error) {
	begin := time.Now()
	found, err := find(s.cgroup, s.dev)
	if err != nil {
		return PassStats{}, err
	}
	for id, known := range s.segments {
		now := found[id]
		if now == nil {
			known.file.Close()
			if err := out.Drop(id); err != nil {
				closeAll(found)
				return PassStats{}, err
			}
			continue
		}
		// The descriptor has kept the number from being another segment's.
		known.Size, known.mappedBy = now.Size, now.mappedBy
		now.file.Close()
		found[id] = known
	}
	s.segments = found
	stats, err := s.compare(ctx, out)
	stats.Duration = time.Since(begin)
	if err != nil {
		return stats, fmt.Errorf("pass over the pod's shared memory: %w", err)
	}
	return stats, nil
}

// Left is a segment that CRIU must leave out.
type Left struct {
	Dev, ID uint64
	// MappedBy is how much of it the mappings of each process show, in bytes.
	MappedBy map[int]uint64
}

// Freeze is called when the pod is frozen: it returns the segments whose content Finish
// will complete. Those that came after the last pass are CRIU's.
func (s *Source) Freeze() ([]Left, error) {
	var left []Left
	for id, known := range s.segments {
		var st unix.Stat_t
		if err := unix.Fstat(int(known.file.Fd()), &st); err != nil {
			return nil, fmt.Errorf("looking at shared memory of the frozen pod: %w", err)
		}
		if st.Size == 0 {
			// CRIU finds nothing to dump in it.
			known.file.Close()
			delete(s.segments, id)
			continue
		}
		known.Size = st.Size
		left = append(left, Left{known.dev, id, known.mappedBy})
	}
	s.frozen = true
	return left, nil
}

// Finish sends what has changed until the freeze.
func (s *Source) Finish(ctx context.Context, out Sink) (PassStats, error) {
	begin := time.Now()
	stats, err := s.compare(ctx, out)
	stats.Duration = time.Since(begin)
	if err != nil {
		return stats, fmt.Errorf("sending shared memory of the frozen pod: %w", err)
	}
	return stats, nil
}

// Close lets go of the segments.
func (s *Source) Close() {
	closeAll(s.segments)
	s.segments = nil
}
