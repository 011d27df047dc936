package pagesync

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync/atomic"
	"time"
)

// FinishStats say what happened after the freeze. Bytes are of memory where
// nothing else is said.
type FinishStats struct {
	// Same is what the target had already, Changed what it had not. Neither
	// counts answers to wants.
	Same, Changed int64
	// Sent counts bytes on the connection, until it was lost if it was.
	Sent     int64
	Duration time.Duration
	// Compared is when everything had been said for the first time, from the
	// beginning of Finish; zero if the connection was lost before.
	Compared time.Duration
}

// Yield is called before Finish where nobody waits for the memory while the pod
// stands still (post-copy): until the channel is closed, of what has not changed lately
// only what small mappings hold is compared, by half of the processors; the others are
// left to dump and restore. With one processor all of it waits. What is not compared when
// the pod runs again, faults have to ask for.
func (s *Source) Yield(until <-chan struct{}) { s.patience = until }

// Finish compares all memory of the frozen pod with what the target has, what
// changed lately first, sends what is different, and returns when the pager has
// everything. What the pager asks for goes first. If the connection is lost the
// pager asks for the rest on the next one; Finish waits for that until ctx is
// done. It is called once, after Freeze or Reopen.
func (s *Source) Finish(ctx context.Context) (FinishStats, error) {
	var stats FinishStats
	if err := s.use(); err != nil {
		return stats, err
	}
	defer s.users.Done()
	s.mu.Lock()
	// On a later connection nothing is known of what the pager has stored.
	l, phase := s.final, s.phase
	s.mu.Unlock()
	if phase != frozen {
		return stats, errors.New("memory can't be finished before the freeze")
	}
	begin := time.Now()
	if l != nil {
		sent := l.sent()
		err := s.finish(ctx, l, &stats)
		stats.Sent = l.sent() - sent
		switch {
		case err == nil:
			stats.Compared = time.Since(begin)
		case errors.Is(err, errLink) && !errors.Is(err, ErrClosed):
			s.log.Warn("pager's connection was lost while memory was sent; it has to ask for the rest", "error", err)
		default:
			return stats, fmt.Errorf("sending the frozen pod's memory: %w", err)
		}
	}
	select {
	case <-s.settled:
	case <-s.closed:
		return stats, ErrClosed
	case <-ctx.Done():
		return stats, fmt.Errorf("waiting until the target has all memory: %w", context.Cause(ctx))
	}
	stats.Duration = time.Since(begin)
	return stats, nil
}

// smallMapping, in bytes, is what a program has for itself rather than for its data.
const smallMapping = 16 << 20

func (s *Source) finish(ctx context.Context, l *link, stats *FinishStats) error {
	defer releaseWhenDone(ctx, l)()
	if err := s.findPresent(ctx, l); err != nil {
		return err
	}
	hot, cold := s.finalJobs()
	var same, changed atomic.Int64
	// compare returns the jobs that were not begun when until was closed.
	compare := func(jobs []job, workers int, until <-chan struct{}) (rest []job, err error) {
		err = Work(ctx, workers, func(give func(job) bool) error {
			for len(jobs) > 0 && !isClosed(until) && give(jobs[0]) {
				jobs = jobs[1:]
			}
			return nil
		}, func() func(job) error {
			w := s.newWorker(l)
			return func(j job) error {
				content, err := w.copier.readAll(j.p, j.address, j.pages)
				if err != nil {
					return err
				}
				frames := w.compare(j.p, j.c, j.address, j.pages, content, true)
				different := int64(bits.OnesCount64(w.different)) * PageSize
				changed.Add(different)
				same.Add(int64(len(content)) - different)
				if err := w.send(frames); err != nil {
					return err
				}
				return nil
			}
		})
		return jobs, err
	}
	_, err := compare(hot, Workers(), nil)
	if some := Workers() / 2; err == nil && s.patience != nil && some > 0 {
		n, _ := slices.BinarySearchFunc(cold, smallMapping+1, func(j job, size int64) int { return cmp.Compare(j.size, size) })
		var rest []job
		rest, err = compare(cold[:n], some, s.patience)
		cold = cold[n-len(rest):]
	}
	if err == nil {
		err = s.yield(ctx, l)
	}
	if err == nil {
		_, err = compare(cold, Workers(), nil)
	}
	stats.Same, stats.Changed = same.Load(), changed.Load()
	if err != nil {
		return err
	}
	return l.send(false, true, Frame{Kind: KindDone})
}

// yield waits for what Yield was given.
func (s *Source) yield(ctx context.Context, l *link) error {
	if s.patience == nil {
		return nil
	}
	if err := l.send(false, true); err != nil {
		return err
	}
	select {
	case <-s.patience:
		return nil
	case <-l.gone:
		return l.cause()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// findPresent notes which pages of the final regions there are, and tells the
// pager which are not.
func (s *Source) findPresent(ctx context.Context, l *link) error {
	return s.eachProcess(ctx, func(p *process) error { return s.findPresentOf(p, l) })
}

func (s *Source) findPresentOf(p *process, l *link) error {
	var frames []Frame
	absent := func(gap span) {
		// A frame's number of pages has 32 bits.
		for !gap.empty() {
			n := min((gap.end-gap.start)/PageSize, 1<<31)
			frames = append(frames, Frame{Kind: KindAbsent, PID: p.inPod, Address: gap.start, Pages: int(n)})
			gap.start += n * PageSize
		}
	}
	if len(p.regions) == 0 {
		return nil
	}
	sc, err := p.frozenScanner()
	if err != nil {
		return err
	}
	for _, r := range p.regions {
		reached := r.start
		err := sc.each(r, func(present span) {
			absent(span{reached, present.start})
			reached = present.end
			eachChunk(present, func(address, pages uint64) { p.chunkAt(address).present |= pages })
		})
		if err == nil {
			err = p.hasMemory()
		}
		if err != nil {
			return fmt.Errorf("looking for the pages of frozen process %d: %w", p.pid, err)
		}
		absent(span{reached, r.end})
		if err := l.send(false, false, frames...); err != nil {
			return err
		}
		frames = frames[:0]
	}
	return nil
}

// finalJobs returns what to read and compare: pages that changed lately or are
// new, the most active chunks first; then all others, those of small mappings
// first: they hold what a program runs on, the large ones its data.
func (s *Source) finalJobs() (hot, cold []job) {
	for _, p := range s.processes {
		for address, c := range p.chunks {
			if c.present == 0 {
				continue
			}
			active := c.present & (c.hot() | ^c.known)
			if active != 0 {
				hot = append(hot, job{p: p, c: c, address: address, pages: active})
			}
			if rest := c.present &^ active; rest != 0 {
				cold = append(cold, job{p: p, c: c, address: address, pages: rest})
			}
		}
	}
	size := func(j job) int64 {
		i, _ := slices.BinarySearchFunc(j.p.regions, j.address+chunkSize, func(r span, end uint64) int { return cmp.Compare(r.start, end) })
		return j.p.regions[max(i-1, 0)].bytes()
	}
	for i := range cold {
		cold[i].size = size(cold[i])
	}
	byAddress := func(a, b job) int {
		return cmp.Or(cmp.Compare(a.p.inPod, b.p.inPod), cmp.Compare(a.address, b.address))
	}
	slices.SortFunc(hot, func(a, b job) int {
		return cmp.Or(cmp.Compare(b.c.heat(), a.c.heat()), byAddress(a, b))
	})
	slices.SortFunc(cold, func(a, b job) int { return cmp.Or(cmp.Compare(a.size, b.size), byAddress(a, b)) })
	return hot, cold
}
