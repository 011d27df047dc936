package pagesync

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"podd/procfs"
)

// Left is a range of memory that podd carries itself and CRIU must leave out.
type Left struct {
	PID        int // the host's view
	Start, End uint64
}

// Freeze is called when the pod is frozen, before CRIU touches it: it returns
// what CRIU must leave out, and tells the pager the same as the final regions.
// Only what the last survey or pass saw of processes and mappings is in it;
// whatever came later is left to CRIU. Call Finish at once afterwards. If it
// fails the pod can be thawed, and the Source is of no more use.
func (s *Source) Freeze(ctx context.Context) ([]Left, error) {
	if err := s.use(); err != nil {
		return nil, err
	}
	defer s.users.Done()
	l, err := s.current()
	if err != nil {
		return nil, err
	}
	if err := s.freeze(ctx); err != nil {
		return nil, err
	}
	var left []Left
	for _, p := range s.processes {
		for _, r := range p.regions {
			left = append(left, Left{p.pid, r.start, r.end})
		}
	}
	regions := s.regionList()
	s.mu.Lock()
	if s.phase == running {
		s.phase, s.regions, s.final = frozen, regions, l
	}
	s.mu.Unlock()
	defer releaseWhenDone(ctx, l)()
	if err := l.send(false, true, Frame{Kind: KindRegions, Flags: FlagFinal, Regions: regions}); err != nil {
		return nil, fmt.Errorf("sending the final regions: %w", s.reason(ctx, err))
	}
	return left, nil
}

// eachProcess does something for all processes, several at a time. It returns
// ctx's cause if that ends before all were begun.
func (s *Source) eachProcess(ctx context.Context, do func(*process) error) error {
	var wg sync.WaitGroup
	var next atomic.Int64
	errs := make([]error, len(s.processes))
	for range Workers() {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(s.processes) || ctx.Err() != nil {
					return
				}
				errs[i] = do(s.processes[i])
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(errs...)
}

// freeze finds the final regions of all processes.
func (s *Source) freeze(ctx context.Context) error {
	err := s.eachProcess(ctx, func(p *process) error {
		if len(p.regions) == 0 {
			return nil
		}
		return p.freeze()
	})
	if ctx.Err() != nil {
		return err
	}
	s.limitRegions()
	return err
}

// freeze sets the final regions of a process, none if it has ended.
func (p *process) freeze() error {
	regions, err := stillCarried(p.pid, p.regions)
	var pointers []uint64
	if err == nil {
		pointers, err = stackPointers(p.pid)
	}
	if err == nil {
		err = p.alive()
	}
	if procfs.Gone(err) {
		p.regions = nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking at the mappings of frozen process %d: %w", p.pid, err)
	}
	for _, sp := range pointers {
		regions = cut(regions, sp)
	}
	p.regions = regions
	return nil
}
