package checkpoint

import (
	"context"
	"errors"
	"fmt"

	"podd/procfs"
)

// pageRun is pages of a frozen process, one after the other.
type pageRun struct {
	start, end uint64
	// content is nil if it is what was sent ahead.
	content []byte
}

// claim returns the mappings of frozen processes that still are what they were when their
// pages were sent ahead. CRIU need not look at these: compare does.
func (a *aheadPages) claim() ([]MemoryRange, error) {
	var claimed []MemoryRange
	for _, p := range a.processes {
		err := p.claim()
		if procfs.Gone(err) {
			p.mappings = nil // it ended before the freeze
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("looking at the mappings of process %d: %w", p.pid, err)
		}
		claimed = append(claimed, p.ranges()...)
	}
	return claimed, nil
}

// ranges returns where the mappings are. Those of a library follow one another, and are one.
func (p *aheadProcess) ranges() []MemoryRange {
	var all []MemoryRange
	for _, m := range p.mappings {
		if last := len(all) - 1; last >= 0 && all[last].End == m.Start {
			all[last].End = m.End
		} else {
			all = append(all, MemoryRange{PID: p.pid, Start: m.Start, End: m.End})
		}
	}
	return all
}

// claim forgets the mappings that are others now.
func (p *aheadProcess) claim() error {
	numbers, err := procfs.NamespacePIDs(p.pid)
	if err != nil {
		return err
	}
	if uint64(numbers[len(numbers)-1]) != p.image>>8 {
		p.mappings = nil // it ended, and its number was given again
		return nil
	}
	maps, err := procfs.OpenMaps(p.pid)
	if err != nil {
		return err
	}
	defer maps.Close()
	still := p.mappings[:0]
	for _, m := range p.mappings {
		now, ok, err := maps.Next(m.Start)
		if err != nil {
			return err
		}
		size := now.PageSize
		if now.PageSize = 0; ok && now == m && (size == 0 || size == pageSize) {
			still = append(still, m)
		}
	}
	p.mappings = still
	return nil
}

// compare finds out what private pages the claimed mappings have, and which are what was sent
// ahead. CRIU dumps meanwhile; the pageServer waits for each process. When ctx is done
// it ends early.
func (a *aheadPages) compare(ctx context.Context) {
	buf := make([]byte, pageBuffer)
	for _, p := range a.processes {
		if p.err = context.Cause(ctx); p.err == nil {
			p.err = a.compareProcess(p, buf)
		}
		close(p.compared)
	}
}

func (a *aheadPages) compareProcess(p *aheadProcess, buf []byte) error {
	if len(p.mappings) == 0 {
		return nil
	}
	pagemap, err := procfs.OpenPagemap(p.pid)
	if err != nil {
		return err
	}
	defer pagemap.Close()
	for _, m := range p.ranges() {
		runs, err := privatePages(pagemap, m.Start, m.End)
		if err != nil {
			return err
		}
		if hasHuge(runs) {
			return fmt.Errorf("between %#x and %#x: %w", m.Start, m.End, errHuge)
		}
		if err := readRuns(p.pid, runs, buf, func(addr uint64, content []byte) error {
			a.compareRun(p, addr, content)
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// errHuge means that there are huge pages where there were none before the freeze.
var errHuge = errors.New("private memory of a file has become huge pages")

// compareRun notes pages that follow all noted before.
func (a *aheadPages) compareRun(p *aheadProcess, addr uint64, content []byte) {
	for ; len(content) > 0; addr, content = addr+pageSize, content[pageSize:] {
		page := content[:pageSize]
		same := a.has(p, addr, page)
		last := len(p.runs) - 1
		if last < 0 || p.runs[last].end != addr || same != (p.runs[last].content == nil) {
			p.runs = append(p.runs, pageRun{start: addr})
			last++
		}
		r := &p.runs[last]
		if r.end = addr + pageSize; !same {
			r.content = append(r.content, page...)
		}
	}
}

// merger puts what was compared into the page stream. CRIU reads the pages of an image in the
// order of their addresses.
type merger struct {
	ahead *aheadPages
	// out is locked by the pageServer.
	out   *frameWriter
	stats *PageStats
	// The process whose image is open, and what of it is to come.
	process *aheadProcess
	rest    []pageRun
}

// open begins an image, once what is to be merged is known, and ends the one before.
func (m *merger) open(ctx context.Context, image uint64) error {
	if err := m.flush(); err != nil {
		return err
	}
	if m.process = m.ahead.process(image); m.process == nil {
		return nil
	}
	if err := m.process.wait(ctx); err != nil {
		return err
	}
	m.process.merged, m.rest = true, m.process.runs
	return nil
}

// wait returns when the process is compared.
func (p *aheadProcess) wait(ctx context.Context) error {
	select {
	case <-p.compared:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if p.err != nil {
		return fmt.Errorf("comparing pages sent ahead: %w", p.err)
	}
	return nil
}

// before writes what comes before a frame of CRIU's. Should CRIU send a page, too, then its
// own is taken.
func (m *merger) before(f frame) error {
	for len(m.rest) > 0 && m.rest[0].start < f.addr {
		r := m.rest[0]
		if r.end > f.addr {
			r = m.split(f.addr)
		} else {
			m.rest = m.rest[1:]
		}
		if err := m.write(r); err != nil {
			return err
		}
	}
	end := f.addr + f.pages*pageSize
	for len(m.rest) > 0 && m.rest[0].start < end {
		if m.rest[0].end > end {
			m.split(end)
			break
		}
		m.rest = m.rest[1:]
	}
	return nil
}

// split takes what is below an address from the first run, and returns it.
func (m *merger) split(at uint64) pageRun {
	whole := m.rest[0]
	below, above := pageRun{start: whole.start, end: at}, pageRun{start: at, end: whole.end}
	if whole.content != nil {
		below.content, above.content = whole.content[:at-whole.start], whole.content[at-whole.start:]
	}
	// The runs are looked at again by nobody.
	m.rest[0] = above
	return below
}

// flush writes all that is left of an image.
func (m *merger) flush() error {
	for _, r := range m.rest {
		if err := m.write(r); err != nil {
			return err
		}
	}
	m.rest = nil
	return nil
}

// errNotDumped means that pages have no place in the image.
var errNotDumped = errors.New("CRIU dumped no memory of it, but it has some")

// end ends the last image, and sees that nothing is missing.
func (m *merger) end(ctx context.Context) error {
	if err := m.flush(); err != nil || m.ahead == nil {
		return err
	}
	for _, p := range m.ahead.processes {
		if err := p.wait(ctx); err != nil {
			return err
		}
		if len(p.runs) > 0 && !p.merged {
			return fmt.Errorf("process %d: %w", p.pid, errNotDumped)
		}
	}
	return nil
}

func (m *merger) write(r pageRun) error {
	f := frame{op: opSame, flags: pagePresent, pages: (r.end - r.start) / pageSize, addr: r.start, image: m.process.image}
	if r.content != nil {
		f.op = opAdd
	} else {
		m.stats.Ahead += int64(r.end - r.start)
	}
	m.stats.Pages += int64(f.pages)
	m.stats.Bytes += int64(r.end - r.start)
	return m.out.append(f, r.content)
}
