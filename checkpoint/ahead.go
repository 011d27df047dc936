package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"

	"github.com/zeebo/xxh3"
	"golang.org/x/sys/unix"

	"podd/procfs"
)

// A program has private pages of its files: what the dynamic linker has put in order in
// its libraries (RELRO), and their variables. Nobody can fill them in after a restore,
// for there is no userfaultfd for mappings of files, so they must be in the image: 160 MiB
// for a desktop of 38 processes, nearly all of which never changes again. So they
// are sent while the pod runs; once it is frozen they are compared beside CRIU, which
// leaves them out (compare.go), and of those that did not change only the addresses follow.

// aheadPages knows what was sent ahead. What was sent is not kept.
type aheadPages struct {
	processes []*aheadProcess
	// seed keeps anybody from making a page with the digest of another.
	seed uint64
	// bytes is how much was sent.
	bytes int64
}

// aheadProcess is what is known of one process.
type aheadProcess struct {
	pid int
	// image is that of its memory.
	image uint64
	// mappings are those of which all private pages were sent, ascending. Most of a program's
	// have none.
	mappings []procfs.Mapping
	// digests are those of pages, by address.
	digests map[uint64]xxh3.Uint128

	// compared is closed when runs, or err, is what the frozen process has.
	compared chan struct{}
	runs     []pageRun
	err      error
	// merged is set once the runs are in the page stream.
	merged bool
}

func newAheadPages() *aheadPages { return &aheadPages{seed: rand.Uint64()} }

// has reports whether a page of the process was sent ahead with this content.
func (a *aheadPages) has(p *aheadProcess, addr uint64, content []byte) bool {
	digest, sent := p.digests[addr]
	return sent && digest == xxh3.Hash128Seed(content, a.seed)
}

// process returns the process with that image; nil if there is none.
func (a *aheadPages) process(image uint64) *aheadProcess {
	if a == nil {
		return nil
	}
	i := slices.IndexFunc(a.processes, func(p *aheadProcess) bool { return p.image == image })
	if i < 0 {
		return nil
	}
	return a.processes[i]
}

// sendAhead sends the private pages of files of all processes of a pod that run; init is
// its first process, in its cgroup are all. A process that ends or changes meanwhile is
// none to wait for: what was not sent comes with the dump.
func sendAhead(ctx context.Context, out *frameWriter, init int, cgroup string) (*aheadPages, error) {
	numbers, err := procfs.NamespacePIDs(init)
	if err != nil {
		return nil, fmt.Errorf("looking at the pod's init: %w", err)
	}
	pids, err := procfs.CgroupProcesses(cgroup)
	if err != nil {
		return nil, err
	}
	a := newAheadPages()
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return nil, context.Cause(ctx)
		}
		err = a.sendProcess(out, pid, len(numbers))
		if errors.Is(err, errSendPages) {
			return nil, err
		}
	}
	return a, nil
}

// sendProcess sends the pages of one process, if it is in the pid namespace of that depth. An
// error that is not errSendPages says that no more of them can be had.
func (a *aheadPages) sendProcess(out *frameWriter, pid, depth int) error {
	numbers, err := procfs.NamespacePIDs(pid)
	if err != nil || len(numbers) != depth {
		return err
	}
	mappings, err := procfs.Mappings(pid)
	if err != nil {
		return err
	}
	pagemap, err := procfs.OpenPagemap(pid)
	if err != nil {
		return err
	}
	defer pagemap.Close()
	p := &aheadProcess{
		pid: pid, image: uint64(numbers[depth-1])<<8 | imageTask, digests: map[uint64]xxh3.Uint128{}, compared: make(chan struct{}),
	}
	a.processes = append(a.processes, p)
	buf := make([]byte, pageBuffer)
	var sent uint64
	for _, m := range mappings {
		// The process may change its mappings while they are read.
		if !sentAhead(m) || m.Start < sent {
			continue
		}
		sent = m.End
		whole, err := a.sendMapping(out, p, pagemap, m, buf)
		if err != nil {
			return err
		}
		if whole {
			m.Name = ""
			p.mappings = append(p.mappings, m)
		}
	}
	return nil
}

// sentAhead reports whether the pages of such a mapping are sent ahead: it is private, of
// a file, and can be read.
func sentAhead(m procfs.Mapping) bool { return m.Readable && !m.Shared && m.Inode != 0 }

// sendMapping sends the private pages of a mapping, if there are such. whole is true if all of
// them were sent.
func (a *aheadPages) sendMapping(out *frameWriter, p *aheadProcess, pagemap *os.File, m procfs.Mapping, buf []byte) (whole bool, err error) {
	runs, err := privatePages(pagemap, m.Start, m.End)
	if err != nil {
		return false, err
	}
	if hasHuge(runs) {
		return false, nil // CRIU knows what to do
	}
	err = readRuns(p.pid, runs, buf, func(addr uint64, content []byte) error { return a.send(out, p, addr, content) })
	if errors.Is(err, errUnreadable) {
		return false, nil
	}
	return err == nil, err
}

func hasHuge(runs []procfs.PageRun) bool {
	return slices.ContainsFunc(runs, func(r procfs.PageRun) bool { return r.Categories&procfs.PageIsHuge != 0 })
}

func (a *aheadPages) send(out *frameWriter, p *aheadProcess, addr uint64, content []byte) error {
	f := frame{op: opAhead, flags: pagePresent, pages: uint64(len(content) / pageSize), addr: addr, image: p.image}
	if err := out.write(f, content); err != nil {
		return err
	}
	for at := 0; at < len(content); at += pageSize {
		p.digests[addr+uint64(at)] = xxh3.Hash128Seed(content[at:at+pageSize], a.seed)
	}
	a.bytes += int64(len(content))
	return nil
}

// privatePages returns where a mapping of a file has pages that are not the file's. It asks
// as CRIU does (pmc_fill in criu/pagemap-cache.c), so they are what CRIU would dump.
func privatePages(pagemap *os.File, start, end uint64) ([]procfs.PageRun, error) {
	const there = procfs.PageIsPresent | procfs.PageIsSwapped
	return scanPages(pagemap, start, end, procfs.PageQuery{
		Not: procfs.PageIsFile | procfs.PageIsZero, Any: there, Tell: there | procfs.PageIsHuge,
	})
}

// scanPages returns all pages of a kind between two addresses.
func scanPages(pagemap *os.File, start, end uint64, q procfs.PageQuery) (all []procfs.PageRun, err error) {
	err = procfs.ScanPages(pagemap, start, end, q, make([]procfs.PageRun, 256), func(r procfs.PageRun) { all = append(all, r) })
	return all, err
}

// errUnreadable means that memory of a process can't be read, or is gone.
var errUnreadable = errors.New("can't read memory")

// readRuns reads pages of a process into buf, piece by piece.
func readRuns(pid int, runs []procfs.PageRun, buf []byte, each func(addr uint64, content []byte) error) error {
	for _, r := range runs {
		for at := r.Start; at < r.End; {
			n, err := readPages(pid, at, buf[:min(uint64(len(buf)), r.End-at)])
			if err == nil && n == 0 {
				err = os.ErrInvalid
			}
			if err != nil {
				return fmt.Errorf("%w of process %d at %#x: %w", errUnreadable, pid, at, err)
			}
			if err := each(at, buf[:n]); err != nil {
				return err
			}
			at += uint64(n)
		}
	}
	return nil
}

// readPages reads whole pages, as many as there are in one piece.
func readPages(pid int, addr uint64, b []byte) (int, error) {
	local := []unix.Iovec{{Base: &b[0]}}
	local[0].SetLen(len(b))
	n, err := unix.ProcessVMReadv(pid, local, []unix.RemoteIovec{{Base: uintptr(addr), Len: len(b)}}, 0)
	return n - n%pageSize, err
}
