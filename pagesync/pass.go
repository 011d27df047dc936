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

	"podd/procfs"
)

// PassStats say what a pass did. Bytes are of memory where nothing else is said.
type PassStats struct {
	Processes int
	Regions   int
	// Scanned is what the carried regions hold.
	Scanned int64
	// Shared is what of it the pod's processes share since a fork: the memory that
	// they take is so much less.
	Shared int64
	// Changed is what was new or other than before.
	Changed int64
	// Sent counts bytes on the connection.
	Sent     int64
	Duration time.Duration
	// Read is how long reading and comparing took, apart from the connection: at
	// least so long it will take to compare the memory of the frozen pod.
	Read time.Duration
}

// cancelGrace is how long a write to the connection may take once nobody waits
// for it any more.
const cancelGrace = time.Second

// lateSurvey is the duration of a pass after which the pod's mappings are looked
// at again, for Freeze: they go out of date.
const lateSurvey = 100 * time.Millisecond

// Survey finds the pod's processes and what of their memory is carried, and
// sends nothing. Freeze goes by the last survey, a Pass's or this one; of the
// stats it fills Processes, Regions, Scanned, Shared and Duration.
func (s *Source) Survey(ctx context.Context) (PassStats, error) {
	if err := s.use(); err != nil {
		return PassStats{}, err
	}
	defer s.users.Done()
	begin := time.Now()
	stats, err := s.survey(ctx)
	if err != nil {
		return stats, fmt.Errorf("looking at the pod's memory: %w", err)
	}
	for _, p := range s.processes {
		err := p.eachPresent(func(present span) { stats.Scanned += present.bytes() })
		if err != nil && !procfs.Gone(err) {
			return stats, fmt.Errorf("looking at the memory of process %d: %w", p.pid, err)
		}
	}
	stats.Duration = time.Since(begin)
	return stats, ctx.Err()
}

// survey renews s.processes and their regions.
func (s *Source) survey(ctx context.Context) (PassStats, error) {
	var stats PassStats
	if s.frozenOrEnded() {
		return stats, errors.New("the pod is frozen already")
	}
	found, err := podProcesses(s.init)
	if err != nil {
		return stats, err
	}
	known := make(map[identity]*process)
	for _, p := range s.processes {
		known[p.identity] = p
	}
	var now []*process
	for _, id := range found {
		if err := ctx.Err(); err != nil {
			return stats, err
		}
		p := known[id]
		if p == nil {
			if p, err = openProcess(id); procfs.Gone(err) {
				continue
			} else if err != nil {
				return stats, fmt.Errorf("opening process %d: %w", id.pid, err)
			}
			s.processes = append(s.processes, p)
		}
		regions, shared, err := carriedMappings(p.pid)
		if err == nil {
			err = p.alive()
		}
		if procfs.Gone(err) {
			continue
		}
		if err != nil {
			return stats, fmt.Errorf("reading the mappings of process %d: %w", p.pid, err)
		}
		p.regions = regions
		stats.Shared += shared
		now = append(now, p)
	}
	for _, p := range s.processes {
		if !slices.Contains(now, p) {
			p.close()
		}
	}
	s.processes = now
	s.limitRegions()
	for _, p := range s.processes {
		p.forget()
		stats.Regions += len(p.regions)
	}
	stats.Processes = len(s.processes)
	return stats, nil
}

func (s *Source) frozenOrEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.phase != running
}

// eachPresent calls found for the pages of the process's regions that hold
// content.
func (p *process) eachPresent(found func(span)) error {
	if len(p.regions) == 0 {
		return nil
	}
	sc, err := newScanner(p.pid)
	if err != nil {
		return err
	}
	defer sc.close()
	for _, r := range p.regions {
		if err := sc.each(r, found); err != nil {
			return err
		}
	}
	return nil
}

// regionList returns the regions of all processes as frames have them.
func (s *Source) regionList() []Region {
	var list []Region
	for _, p := range s.processes {
		for _, r := range p.regions {
			list = append(list, Region{p.inPod, r.start, r.end})
		}
	}
	slices.SortFunc(list, func(a, b Region) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Start, b.Start))
	})
	return list
}

// limitRegions leaves the smallest regions to CRIU where there are more than a
// frame holds.
func (s *Source) limitRegions() {
	var sizes []int64
	for _, p := range s.processes {
		for _, r := range p.regions {
			sizes = append(sizes, r.bytes())
		}
	}
	if len(sizes) <= maxRegions {
		return
	}
	slices.Sort(sizes)
	least := sizes[len(sizes)-maxRegions]
	equal := 0 // how many of that size there is room for
	for _, size := range sizes[len(sizes)-maxRegions:] {
		if size == least {
			equal++
		}
	}
	for _, p := range s.processes {
		p.regions = slices.DeleteFunc(p.regions, func(r span) bool {
			if r.bytes() == least {
				equal--
				return equal < 0
			}
			return r.bytes() < least
		})
	}
}

// Pass reads all carried memory while the pod runs, sends what the target does
// not have, and returns when it has stored it. A pass that fails with ErrLost can
// not be repeated; after any other error, ctx's for one, there may be others.
func (s *Source) Pass(ctx context.Context) (PassStats, error) {
	if err := s.use(); err != nil {
		return PassStats{}, err
	}
	defer s.users.Done()
	l, err := s.current()
	if err != nil {
		return PassStats{}, err
	}
	begin, sent := time.Now(), l.sent()
	stats, err := s.survey(ctx)
	if err == nil {
		err = s.pass(ctx, l, &stats)
	}
	stats.Sent = l.sent() - sent
	if err != nil {
		return stats, fmt.Errorf("pass over the pod's memory: %w", s.reason(ctx, err))
	}
	for _, p := range s.processes {
		p.passes++
	}
	if time.Since(begin) > lateSurvey {
		late, err := s.survey(ctx)
		if err != nil {
			return stats, fmt.Errorf("looking at the pod's memory after a pass: %w", err)
		}
		stats.Processes, stats.Regions = late.Processes, late.Regions
	}
	stats.Duration = time.Since(begin)
	return stats, nil
}

// reason makes of a connection's error what it means for a pass.
func (s *Source) reason(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.Is(err, errLink) && !errors.Is(err, ErrClosed) {
		return fmt.Errorf("%w: %w", ErrLost, err)
	}
	return err
}

func (s *Source) pass(ctx context.Context, l *link, stats *PassStats) error {
	defer releaseWhenDone(ctx, l)()
	if err := l.send(false, false, Frame{Kind: KindRegions, Regions: s.regionList()}); err != nil {
		return err
	}
	var scanned, changed, busy atomic.Int64
	err := Work(ctx, Workers(), func(give func(job) bool) error {
		for _, p := range s.processes {
			if err := p.jobs(give); err != nil && !procfs.Gone(err) {
				return fmt.Errorf("looking for the pages of process %d: %w", p.pid, err)
			}
		}
		return nil
	}, func() func(job) error {
		w := s.newWorker(l)
		return func(j job) error {
			begin := time.Now()
			done, content, err := w.copier.read(j.p, j.address, j.pages)
			if procfs.Gone(err) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("reading memory of process %d at %#x: %w", j.p.pid, j.address, err)
			}
			frames := w.compare(j.p, j.c, j.address, done, content, false)
			busy.Add(int64(time.Since(begin)))
			scanned.Add(int64(len(content)))
			changed.Add(int64(bits.OnesCount64(w.different)) * PageSize)
			return w.send(frames)
		}
	})
	stats.Scanned, stats.Changed = scanned.Load(), changed.Load()
	stats.Read = time.Duration(busy.Load()) / time.Duration(Workers())
	if err != nil {
		return err
	}
	return s.mark(ctx, l)
}

// releaseWhenDone makes a write under way end soon once ctx is done.
func releaseWhenDone(ctx context.Context, l *link) (release func()) {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		l.conn.SetWriteDeadline(time.Now().Add(cancelGrace))
		close(done)
	})
	return func() {
		if !stop() {
			<-done
			l.conn.SetWriteDeadline(time.Time{})
		}
	}
}

// mark waits until the pager has stored everything sent so far.
func (s *Source) mark(ctx context.Context, l *link) error {
	s.mu.Lock()
	s.marks++
	number := s.marks
	s.mu.Unlock()
	if err := l.send(false, true, Frame{Kind: KindMark, Number: number}); err != nil {
		return err
	}
	for {
		s.mu.Lock()
		acked, changed := s.acked >= number, s.changed
		s.mu.Unlock()
		if acked {
			return nil
		}
		select {
		case <-changed:
		case <-l.gone:
			return l.cause()
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
