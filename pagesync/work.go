package pagesync

import (
	"context"
	"runtime"
	"sync"

	"github.com/zeebo/xxh3"
)

// job is pages of one chunk to read and compare.
type job struct {
	p       *process
	c       *chunk
	address uint64
	pages   uint64
	size    int64 // of the region, in bytes, if it matters
}

// jobs gives a job for each chunk that has content in the process's regions.
func (p *process) jobs(give func(job) bool) error {
	var j job
	stopped := false
	flush := func() {
		if j.pages != 0 && !stopped {
			j.p, j.c = p, p.chunkAt(j.address)
			stopped = !give(j)
		}
	}
	err := p.eachPresent(func(present span) {
		eachChunk(present, func(address, pages uint64) {
			if address != j.address {
				flush()
				j = job{address: address}
			}
			j.pages |= pages
		})
	})
	flush()
	return err
}

// beside is how many goroutines of podd may be busy with a frozen pod beside those that
// compare memory, and one that is left to who answers.
const beside = 3

// Processors returns how many threads are to run Go code at a time on a machine with so
// many processors. Go looks at connections when it has nothing else to run, or after 10 ms;
// a fault, and CRIU beside it, would wait as long. So there is always one with nothing
// to run while private and shared memory are compared, each by Workers.
func Processors(n int) int { return 2*n + beside }

// Workers is how many goroutines read and compare: one for each processor.
func Workers() int { return max(1, (runtime.GOMAXPROCS(0)-beside)/2) }

// Work has produce's jobs done by so many goroutines, each with a function that
// newWorker returns, until all are done or one fails. give is false when no more are
// wanted.
func Work[Job any](ctx context.Context, workers int, produce func(give func(Job) bool) error, newWorker func() func(Job) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	jobs := make(chan Job, 64)
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			do := newWorker()
			for j := range jobs {
				if ctx.Err() != nil {
					continue
				}
				if err := do(j); err != nil {
					cancel(err)
				}
			}
		})
	}
	err := produce(func(j Job) bool {
		select {
		case jobs <- j:
			return true
		case <-ctx.Done():
			return false
		}
	})
	close(jobs)
	wg.Wait()
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return err
}

// worker compares and sends. It is for one goroutine.
type worker struct {
	s         *Source
	l         *link
	copier    *copier
	different uint64 // pages that compare found to be other than before
	packed    []byte
}

func (s *Source) newWorker(l *link) *worker {
	return &worker{s: s, l: l, copier: newCopier()}
}

// compare returns the frames that give the target what is different in a chunk's
// pages, and notes that it is about to have that; once final it notes nothing and
// the frames tell of the other pages too. They refer to content.
func (w *worker) compare(p *process, c *chunk, address, pages uint64, content []byte, final bool) []Frame {
	b := batch{pid: p.inPod, address: address}
	before := c.known
	w.different = 0
	b.add(content, pages, func(page int, content []byte) Kind {
		bit := uint64(1) << page
		hash := xxh3.Hash128Seed(content, w.s.seed)
		if before&bit != 0 && c.hash[page] == hash {
			if final {
				return KindSame
			}
			return 0
		}
		w.different |= bit
		if !final {
			c.known |= bit
			c.hash[page] = hash
		}
		if hash == w.s.zero {
			return KindZero
		}
		return KindData
	})
	if !final {
		c.changed[1] = c.changed[0]
		c.changed[0] = w.different
		if p.passes == 0 {
			c.changed[0] = 0 // all is new then
		}
	}
	return b.frames
}

// send sends frames one by one, so that others get their turn in between, and
// compresses data if that is faster.
func (w *worker) send(frames []Frame) error {
	for _, f := range frames {
		if f.Kind == KindData && w.s.compressor.worth(w.l.meter.get()) {
			packed, ok := w.s.compressor.compress(w.packed[:0], f.Payload)
			w.packed = packed
			if ok {
				f.Flags, f.Payload = FlagZstd, packed
			}
		}
		if err := w.l.send(false, false, f); err != nil {
			return err
		}
	}
	return nil
}
