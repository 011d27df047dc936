package sharedmem

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"sync/atomic"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"podd/pagesync"
)

// job is pages of one chunk to read and compare.
type job struct {
	s      *segment
	c      *chunk
	offset int64
	pages  uint64
}

// compare reads all segments and sends what the target does not have.
func (s *Source) compare(ctx context.Context, out Sink) (PassStats, error) {
	var scanned, changed atomic.Int64
	err := pagesync.Work(ctx, pagesync.Workers(), func(give func(job) bool) error {
		return s.walk(out, give)
	}, func() func(job) error {
		buf := make([]byte, chunkSize)
		return func(j job) error {
			read, different, err := s.do(j, buf, out)
			scanned.Add(read)
			changed.Add(different)
			return err
		}
	})
	return PassStats{Segments: len(s.segments), Scanned: scanned.Load(), Changed: changed.Load()}, err
}

// walk gives a job for each chunk that has content, and says which pages are gone.
func (s *Source) walk(out Sink, give func(job) bool) error {
	left := maxPages
	for _, id := range slices.Sorted(maps.Keys(s.segments)) {
		g := s.segments[id]
		if g.announced != g.Size {
			if err := out.Segment(g.Segment); err != nil {
				return err
			}
			g.announced = g.Size
		}
		present, err := g.present(&left)
		if errors.Is(err, errTooMuch) && !s.frozen {
			g.file.Close()
			delete(s.segments, id)
			if err := out.Drop(id); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		for _, at := range slices.Sorted(maps.Keys(g.chunks)) {
			c := g.chunks[at]
			for first, n := range pagesync.Runs(c.known &^ present[at]) {
				offset := at + int64(first)*pageSize
				if offset >= g.Size {
					break // it has become shorter there, too
				}
				if err := out.Hole(id, offset, min(int64(n)*pageSize, g.Size-offset)); err != nil {
					return err
				}
			}
			if c.known &= present[at]; c.known == 0 {
				delete(g.chunks, at)
			}
		}
		for _, at := range slices.Sorted(maps.Keys(present)) {
			c := g.chunks[at]
			if c == nil {
				c = new(chunk)
				g.chunks[at] = c
			}
			if !give(job{g, c, at, present[at]}) {
				return nil
			}
		}
	}
	return nil
}

// errTooMuch means that there is more shared memory than is carried.
var errTooMuch = fmt.Errorf("more than %d GiB of shared memory", int64(maxPages)*pageSize>>30)

// present returns the pages that a segment has, by chunk; of all segments no more than
// left.
func (g *segment) present(left *int) (map[int64]uint64, error) {
	found := map[int64]uint64{}
	fd := int(g.file.Fd())
	for at := int64(0); at < g.Size; {
		start, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		end := int64(0)
		if err == nil {
			end, err = unix.Seek(fd, start, unix.SEEK_HOLE)
		}
		if err == unix.ENXIO {
			break // it has become shorter
		}
		if err != nil {
			return nil, fmt.Errorf("looking for the pages of shared memory %d: %w", g.ID, err)
		}
		end = min(end, g.Size)
		at = end
		for start &^= pageSize - 1; start < end; {
			base := start &^ (chunkSize - 1)
			pages := pagesOf(base, start, end)
			if *left -= bits.OnesCount64(pages); *left < 0 {
				return nil, errTooMuch
			}
			found[base] |= pages
			start = base + chunkSize
		}
	}
	return found, nil
}

// do reads pages, and sends what is different.
func (s *Source) do(j job, buf []byte, out Sink) (read, different int64, err error) {
	var changed uint64
	for first, n := range pagesync.Runs(j.pages) {
		b := buf[first*pageSize : (first+n)*pageSize]
		got, err := pread(j.s, b, j.offset+int64(first)*pageSize)
		if err != nil {
			return read, 0, err
		}
		if whole := (got + pageSize - 1) / pageSize; whole < n {
			if s.frozen {
				return read, 0, fmt.Errorf("shared memory %d ends at %d instead of %d", j.s.ID, j.offset+int64(first*pageSize+got), j.s.Size)
			}
			n = whole // the rest is gone
		}
		clear(b[got:])
		read += int64(n) * pageSize
		for page := first; page < first+n; page++ {
			hash := xxh3.Hash128Seed(buf[page*pageSize:(page+1)*pageSize], s.seed)
			if bit := uint64(1) << page; j.c.known&bit == 0 || j.c.hash[page] != hash {
				changed |= bit
				j.c.known |= bit
				j.c.hash[page] = hash
			}
		}
	}
	different = int64(bits.OnesCount64(changed)) * pageSize
	for first, n := range pagesync.Runs(changed) {
		if err := out.Pages(j.s.ID, j.offset+int64(first)*pageSize, buf[first*pageSize:(first+n)*pageSize]); err != nil {
			return read, different, err
		}
	}
	return read, different, nil
}

// pread reads as much as there is.
func pread(g *segment, b []byte, offset int64) (int, error) {
	got := 0
	for got < len(b) {
		n, err := unix.Pread(int(g.file.Fd()), b[got:], offset+int64(got))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return got, fmt.Errorf("reading shared memory %d at %#x: %w", g.ID, offset, err)
		}
		if n == 0 {
			break
		}
		got += n
	}
	return got, nil
}
