package checkpoint

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"github.com/checkpoint-restore/go-criu/v7/crit/images/mm"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"

	"podd/procfs"
)

// ErrTouched means that something has written to memory that was left out of a dump
// before it was registered with its userfaultfd. There are zeros now where the pod had
// data, so the restore fails. Those after it have CRIU register memory.
var ErrTouched = errors.New("memory was touched before it could be filled in")

// span is a range of addresses: end is not part of it.
type span struct{ start, end uint64 }

// plan is what is to be registered with the userfaultfd of a process.
type plan struct {
	pid, host int // its number in the pod and here
	uffd      *os.File
	// left was left out of the dump.
	left []span
	// mappings are those that have some of it.
	mappings []span
	// restored are the pages that CRIU restores, and what needs none.
	restored []span
}

// eachPlan does something for all processes, several at a time.
func eachPlan(plans map[int]*plan, do func(*plan) error) error {
	var list []*plan
	for _, l := range plans {
		list = append(list, l)
	}
	// The largest first, for they take longest.
	slices.SortFunc(list, func(a, b *plan) int { return len(b.left) - len(a.left) })
	var next atomic.Int64
	var wg sync.WaitGroup
	errs := make([]error, len(list))
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(list) {
					return
				}
				if err := do(list[i]); err != nil {
					errs[i] = fmt.Errorf("memory of process %d: %w", list[i].pid, err)
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// read finds the mappings and the restored pages of the process in its images.
func (l *plan) read(imagesDir string) error {
	if len(l.left) == 0 {
		return nil
	}
	root, err := os.OpenRoot(imagesDir)
	if err != nil {
		return err
	}
	defer root.Close()
	v := &verifier{root: root}
	memory, err := readOne[mm.MmEntry](v, fmt.Sprintf("mm-%d.img", l.pid), "MM")
	if err != nil {
		return err
	}
	const private = unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	left := l.left
	for _, area := range memory.GetVmas() {
		s := span{area.GetStart(), area.GetEnd()}
		if area.GetStatus()&guardArea != 0 {
			l.restored = append(l.restored, s) // marked in the page tables, without a page
			continue
		}
		for len(left) > 0 && left[0].end <= s.start {
			left = left[1:]
		}
		if len(left) > 0 && left[0].start < s.end && area.GetFlags()&private == private {
			l.mappings = append(l.mappings, s)
		}
	}
	name := fmt.Sprintf("pagemap-%d.img", l.pid)
	data, err := v.read(name, "PAGEMAP")
	if err != nil {
		return err
	}
	pages, err := pageSpans(data)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	l.restored = joined(append(l.restored, pages...))
	return nil
}

// pageSpans reads the entries of a pagemap image as pageReceiver.enter writes them.
func pageSpans(data []byte) ([]span, error) {
	var spans []span
	for first := true; len(data) > 0; first = false {
		if len(data) < 4 || uint64(binary.LittleEndian.Uint32(data)) > uint64(len(data)-4) {
			return nil, fmt.Errorf("%w: it ends in the middle of an entry", ErrCorrupt)
		}
		size := binary.LittleEndian.Uint32(data)
		entry := data[4 : 4+size]
		data = data[4+size:]
		if first {
			continue // pagemap_head
		}
		var fields [6]uint64
		for len(entry) > 0 {
			field, kind, n := protowire.ConsumeTag(entry)
			if n < 0 || kind != protowire.VarintType || int(field) >= len(fields) {
				return nil, fmt.Errorf("%w: malformed entry", ErrCorrupt)
			}
			value, m := protowire.ConsumeVarint(entry[n:])
			if m < 0 {
				return nil, fmt.Errorf("%w: malformed entry", ErrCorrupt)
			}
			fields[field] = value
			entry = entry[n+m:]
		}
		spans = append(spans, span{fields[1], fields[1] + fields[5]*pageSize})
	}
	return spans, nil
}

// joined sorts spans and makes one of those that touch.
func joined(spans []span) []span {
	slices.SortFunc(spans, func(a, b span) int {
		if a.start < b.start {
			return -1
		}
		return 1
	})
	var all []span
	for _, s := range spans {
		if n := len(all); n > 0 && s.start <= all[n-1].end {
			all[n-1].end = max(all[n-1].end, s.end)
		} else {
			all = append(all, s)
		}
	}
	return all
}

// register registers the mappings, and then makes sure that nothing is there that
// ought to be missing: a page that is there is never filled in.
func (l *plan) register() error {
	// While somebody else has a descriptor nothing reads as zeros when all is filled.
	defer func() {
		l.uffd.Close()
		l.uffd = nil
	}()
	if len(l.left) == 0 {
		return nil
	}
	raw, err := l.uffd.SyscallConn()
	if err != nil {
		return err
	}
	var registerErr error
	err = raw.Control(func(fd uintptr) {
		for _, m := range l.mappings {
			if registerErr = registerMissing(fd, m); registerErr != nil {
				return
			}
		}
	})
	if err := errors.Join(err, registerErr); err != nil {
		return err
	}
	pages, err := procfs.OpenPagemap(l.host)
	if err != nil {
		return err
	}
	defer pages.Close()
	restored := l.restored
	for _, s := range l.left {
		present, err := presentPages(pages, s)
		if err != nil {
			return err
		}
		for _, p := range present {
			for len(restored) > 0 && restored[0].end <= p.Start {
				restored = restored[1:]
			}
			if len(restored) == 0 || restored[0].start > p.Start || restored[0].end < p.End {
				return fmt.Errorf("%w: from %#x to %#x", ErrTouched, p.Start, p.End)
			}
		}
	}
	return nil
}

// registerMissing is UFFDIO_REGISTER with the mode UFFDIO_REGISTER_MODE_MISSING
// (include/uapi/linux/userfaultfd.h).
func registerMissing(uffd uintptr, s span) error {
	const request, missing = 0xc020aa00, 1
	arg := struct{ start, length, mode, ioctls uint64 }{s.start, s.end - s.start, missing, 0}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uffd, request, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("registering %#x to %#x with its userfaultfd: %w", s.start, s.end, errno)
	}
	return nil
}

// presentPages returns where there are pages, be they in memory or swapped out.
func presentPages(pagemap *os.File, s span) ([]procfs.PageRun, error) {
	return scanPages(pagemap, s.start, s.end, procfs.PageQuery{Any: procfs.PageIsPresent | procfs.PageIsSwapped})
}
