package checkpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	"github.com/checkpoint-restore/go-criu/v7/rpc"

	"podd/procfs"
)

// MemoryRange is part of a process's memory.
type MemoryRange struct {
	// PID is the process, as this process sees it.
	PID int
	// Start and End are addresses, multiples of the page size; End is not
	// part of it.
	Start, End uint64
}

// ErrNoFilter means that memory can't be left out of dumps on this host. The text
// says why.
var ErrNoFilter = errors.New("memory can't be left out of a dump")

// maxLeftOut is how many ranges may be left out of one dump.
const maxLeftOut = 1 << 16

// leftOutTable tells the library in CRIU what to leave out; pagefilter/pagefilter.c has
// the same layout:
//
//	magic
//	1 when the library has found the table
//	number of ranges, number of texts
//	descriptor of the page socket on which the library answers CRIU that an image
//	    is open, 0 if podd does; and of the bell to ring when CRIU waits for more
//	maxLeftOut ranges, by pid and start: pid, start, end, and flags: rangeCut when
//	    the library has cut it from a question of CRIU's, rangeInImage
//	maxTexts texts: pid, offset in the file, size, and 1 when CRIU has got it;
//	    offset and number of what is known of the mappings' files
//	the texts themselves, each followed by the files: start and end of the
//	    mapping, and the mode of its link in map_files, 0 if there is none, with
//	    mappedPlain
type leftOutTable struct {
	*tableFile
	// free is where the next text goes.
	free int
}

const (
	tableMagic = 0x32464c4444444f50
	// rangeInImage is the flag of a range of which podd itself puts the pages into
	// the image.
	rangeCut, rangeInImage = 1, 2

	// Sizes of a range, a text and a file, in bytes.
	rangeEntry = 32
	textEntry  = 48
	fileEntry  = 24
	maxTexts   = 1 << 10
	rangesAt   = 48
	textsAt    = rangesAt + maxLeftOut*rangeEntry
	textArea   = textsAt + maxTexts*textEntry
	tableSize  = textArea + 16<<20

	// filterVariable tells the library the table's descriptor.
	filterVariable = "PODD_PAGEFILTER"
)

func newLeftOutTable() (*leftOutTable, error) {
	file, err := newTableFile("podd-left-out", tableMagic, tableSize)
	if err != nil {
		return nil, err
	}
	return &leftOutTable{file, textArea}, nil
}

// attached reports whether the library is at work.
func (t *leftOutTable) attached() bool { return atomic.LoadUint64(t.word(8)) == 1 }

// answerOpens has the library answer on CRIU's page socket that an image is open, so that CRIU
// waits for nobody, and ring a bell when CRIU does wait. It gets CRIU's descriptors. If there is no
// library the result is false. CRIU must not have sent anything yet.
func (t *leftOutTable) answerOpens(socket, bell int) bool {
	if !t.attached() {
		return false
	}
	*t.word(40) = uint64(bell)
	atomic.StoreUint64(t.word(32), uint64(socket))
	return true
}

// set writes the ranges that are in no image, and those that podd puts into the image. CRIU
// must not have looked at the memory yet.
func (t *leftOutTable) set(absent, inImage []MemoryRange) error {
	type flagged struct {
		MemoryRange
		flags uint64
	}
	ranges := make([]flagged, 0, len(absent)+len(inImage))
	for _, r := range absent {
		ranges = append(ranges, flagged{r, 0})
	}
	for _, r := range inImage {
		ranges = append(ranges, flagged{r, rangeInImage})
	}
	if len(ranges) > maxLeftOut {
		return fmt.Errorf("%w: %d ranges of memory to leave out, at most %d are possible", ErrLimit, len(ranges), maxLeftOut)
	}
	slices.SortFunc(ranges, func(a, b flagged) int {
		return cmp.Or(cmp.Compare(a.PID, b.PID), cmp.Compare(a.Start, b.Start))
	})
	at := rangesAt
	for i, r := range ranges {
		if r.PID <= 0 || r.Start >= r.End || r.Start%pageSize != 0 || r.End%pageSize != 0 ||
			i > 0 && r.PID == ranges[i-1].PID && r.Start < ranges[i-1].End {
			return fmt.Errorf("memory to leave out is malformed or there twice: %#x to %#x of process %d", r.Start, r.End, r.PID)
		}
		at = t.put(at, uint64(r.PID), r.Start, r.End, r.flags)
	}
	atomic.StoreUint64(t.word(16), uint64(len(ranges)))
	return nil
}

// setText has CRIU read this in place of the process's smaps, and know the files of its
// mappings. If there is no room for it, CRIU asks the kernel.
func (t *leftOutTable) setText(pid int, text []byte, files []mappedFile) {
	n := int(*t.word(24))
	filesAt := (t.free + len(text) + 7) &^ 7
	end := filesAt + len(files)*fileEntry
	if n == maxTexts || end > len(t.mem) {
		return
	}
	copy(t.mem[t.free:], text)
	at := filesAt
	for _, f := range files {
		at = t.put(at, f.start, f.end, f.mode)
	}
	t.put(textsAt+n*textEntry, uint64(pid), uint64(t.free), uint64(len(text)), 0, uint64(filesAt), uint64(len(files)))
	t.free = end
	atomic.StoreUint64(t.word(24), uint64(n+1))
}

// textsRead counts the texts that CRIU got.
func (t *leftOutTable) textsRead() (n int) {
	for i := range int(*t.word(24)) {
		n += int(atomic.LoadUint64(t.word(textsAt + i*textEntry + 24)))
	}
	return n
}

// cut returns how many bytes of address space were left out and are in no image, and how
// many more were to be left out but were dumped.
func (t *leftOutTable) cut() (absent, dumped int64) {
	for i := range int(*t.word(16)) {
		at := rangesAt + i*rangeEntry
		size := int64(*t.word(at + 16) - *t.word(at + 8))
		flags := atomic.LoadUint64(t.word(at + 24))
		if flags&rangeCut == 0 {
			dumped += size
		} else if flags&rangeInImage == 0 {
			absent += size
		}
	}
	return absent, dumped
}

// absent returns the ranges that are in no image, by process and start.
func (t *leftOutTable) absent() []MemoryRange {
	var all []MemoryRange
	for i := range int(*t.word(16)) {
		at := rangesAt + i*rangeEntry
		if atomic.LoadUint64(t.word(at+24))&rangeInImage == 0 {
			all = append(all, MemoryRange{PID: int(*t.word(at)), Start: *t.word(at + 8), End: *t.word(at + 16)})
		}
	}
	return all
}

// CanLeaveOut reports whether DumpOptions.LeaveOut has an effect here; if not, the
// error wraps ErrNoFilter and says why. A CRIU is started to see it, once.
func (e *Engine) CanLeaveOut() error { return e.canLeaveOut() }

func (e *Engine) tryFilter() error {
	if e.pageFilter == "" {
		return fmt.Errorf("%w: no library for it was configured", ErrNoFilter)
	}
	if _, err := os.Stat(e.pageFilter); err != nil {
		return fmt.Errorf("%w: %w: install it from the build that podd is of", ErrNoFilter, err)
	}
	if err := hasPagemapScan(); err != nil {
		return fmt.Errorf("%w: %w: Linux 6.7 or newer is needed", ErrNoFilter, err)
	}
	table, err := newLeftOutTable()
	if err != nil {
		return err
	}
	defer table.close()
	w, err := e.startWorker(workerOptions{leftOut: table, log: e.log})
	if err != nil {
		return err
	}
	defer w.stop()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	if _, err := w.ask(ctx, &rpc.CriuReq{Type: rpc.CriuReqType_VERSION.Enum()}); err != nil {
		return fmt.Errorf("%w: CRIU does not start with %s: %w", ErrNoFilter, e.pageFilter, err)
	}
	if !table.attached() {
		return fmt.Errorf("%w: CRIU (%s) does not load %s: is it linked statically, or a script that sets LD_PRELOAD?", ErrNoFilter, e.path, e.pageFilter)
	}
	return nil
}

// hasPagemapScan asks the kernel for the call that CRIU finds pages with. The
// question is about a page that is not there.
func hasPagemapScan() error {
	pagemap, err := procfs.OpenPagemap(os.Getpid())
	if err != nil {
		return err
	}
	defer pagemap.Close()
	_, err = scanPages(pagemap, 0, pageSize, procfs.PageQuery{Any: procfs.PageIsPresent})
	return err
}
