package pagesync

import (
	"fmt"
	"iter"
	"math/bits"
	"os"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"
)

const (
	// chunkPages is how many pages are read, compared and remembered together,
	// by the bits of one word.
	chunkPages = 64
	chunkSize  = chunkPages * PageSize
)

// chunk is what is known of 256 KiB of a process's memory, aligned. It costs
// 17 bytes a page.
type chunk struct {
	known uint64             // pages of which the target's store has content with this hash
	hash  [chunkPages]digest // of what was last sent
	// Pages that were found changed in the last passes, the last one first: those
	// are likely to be changed and used next.
	changed [2]uint64
	present uint64 // once frozen: pages with content
}

type digest = xxh3.Uint128

// hot returns the pages that changed lately.
func (c *chunk) hot() uint64 { return c.changed[0] | c.changed[1] }

// heat orders chunks.
func (c *chunk) heat() int {
	return 2*bits.OnesCount64(c.changed[0]) + bits.OnesCount64(c.changed[1])
}

// maskOf returns the pages of the chunk at address that lie in s.
func maskOf(address uint64, s span) uint64 {
	s = s.intersect(span{address, address + chunkSize})
	if s.empty() {
		return 0
	}
	first, n := (s.start-address)/PageSize, (s.end-s.start)/PageSize
	return ^uint64(0) >> (chunkPages - n) << first
}

// eachChunk calls found for every chunk that s touches, with the pages it does.
func eachChunk(s span, found func(address, pages uint64)) {
	for a := s.start &^ (chunkSize - 1); a < s.end; a += chunkSize {
		found(a, maskOf(a, s))
	}
}

// Runs goes through the runs of set bits: the first of each, and how many there are.
func Runs(mask uint64) iter.Seq2[int, int] {
	return func(yield func(first, n int) bool) {
		for mask := mask; mask != 0; {
			first := bits.TrailingZeros64(mask)
			n := bits.TrailingZeros64(^(mask >> first))
			if !yield(first, n) || first+n == 64 {
				return
			}
			mask &= ^uint64(0) << (first + n)
		}
	}
}

// forget drops what is known of pages that no region has: the target may have
// dropped them as well.
func (p *process) forget() {
	kept := make(map[uint64]uint64, len(p.chunks))
	for _, r := range p.regions {
		// Regions may be much larger than what is known of them.
		if uint64(len(p.chunks)) < (r.end-r.start)/chunkSize {
			for a := range p.chunks {
				if m := maskOf(a, r); m != 0 {
					kept[a] |= m
				}
			}
			continue
		}
		eachChunk(r, func(a, pages uint64) {
			if p.chunks[a] != nil {
				kept[a] |= pages
			}
		})
	}
	for a, c := range p.chunks {
		c.known &= kept[a]
		if c.known == 0 {
			delete(p.chunks, a)
		}
	}
}

// chunkAt returns the chunk at an address, a new one if nothing is known of it.
func (p *process) chunkAt(address uint64) *chunk {
	c := p.chunks[address]
	if c == nil {
		c = new(chunk)
		p.chunks[address] = c
	}
	return c
}

// copier copies pages out of processes. It is for one goroutine.
type copier struct {
	buf    []byte
	remote []unix.RemoteIovec
}

func newCopier() *copier {
	return &copier{buf: make([]byte, chunkSize), remote: make([]unix.RemoteIovec, 0, chunkPages)}
}

// read copies the given pages of the chunk at address, one after the other, and
// returns those it could: the pages before the first that is not there.
func (c *copier) read(p *process, address, pages uint64) (done uint64, content []byte, err error) {
	c.remote = c.remote[:0]
	for first, n := range Runs(pages) {
		c.remote = append(c.remote, unix.RemoteIovec{Base: uintptr(address) + uintptr(first)*PageSize, Len: n * PageSize})
	}
	content = c.buf[:bits.OnesCount64(pages)*PageSize]
	local := [1]unix.Iovec{{Base: &content[0]}}
	local[0].SetLen(len(content))
	var n int
	for {
		n, err = unix.ProcessVMReadv(p.pid, local[:], c.remote, 0)
		if err != unix.EINTR {
			break
		}
	}
	switch err {
	case nil:
	case unix.EFAULT:
		n = 0
	default:
		return 0, nil, os.NewSyscallError("process_vm_readv", err)
	}
	if err := p.alive(); err != nil {
		return 0, nil, err
	}
	n /= PageSize
	for range n {
		done |= pages & -pages
		pages &= pages - 1
	}
	return done, content[:n*PageSize], nil
}

// readAll is read for a process that is frozen: every page must be there.
func (c *copier) readAll(p *process, address, pages uint64) ([]byte, error) {
	done, content, err := c.read(p, address, pages)
	if err != nil {
		return nil, fmt.Errorf("reading memory of process %d at %#x: %w", p.pid, address, err)
	}
	if done != pages {
		missing := pages &^ done
		at := address + uint64(bits.TrailingZeros64(missing))*PageSize
		return nil, fmt.Errorf("reading memory of process %d at %#x: %w", p.pid, at, unix.EFAULT)
	}
	return content, nil
}
