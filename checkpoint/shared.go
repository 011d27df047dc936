package checkpoint

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"podd/sharedmem"
)

// CRIU reads and writes shared memory at 1.1 GB/s while the pod is frozen. So podd carries
// it (package sharedmem), and CRIU finds nothing in the segments that podd has: the
// library in its process answers lseek(SEEK_DATA) on them, by which it looks for pages.

// sharedTable tells the library which segments to leave out; pagefilter/shared.c has the
// same layout:
//
//	magic
//	number of segments
//	sharedmem.MaxSegments segments: device, inode, and 1 when CRIU has been told that
//	    there is nothing in it
type sharedTable struct{ *tableFile }

const (
	sharedMagic   = 0x3148534444444f50
	sharedEntry   = 24
	segmentsAt    = 16
	sharedSize    = segmentsAt + sharedmem.MaxSegments*sharedEntry
	sharedVarName = "PODD_SHARED"
)

func newSharedTable() (*sharedTable, error) {
	file, err := newTableFile("podd-shared", sharedMagic, sharedSize)
	if err != nil {
		return nil, err
	}
	return &sharedTable{file}, nil
}

// set writes the segments. CRIU must not have looked at any of them yet.
func (t *sharedTable) set(segments []sharedmem.Left) {
	at := segmentsAt
	for _, s := range segments {
		at = t.put(at, s.Dev, s.ID, 0)
	}
	atomic.StoreUint64(t.word(8), uint64(len(segments)))
}

// cut returns the segments of which CRIU was told that there is nothing in them.
func (t *sharedTable) cut() (ids []uint64) {
	for i := range int(*t.word(8)) {
		at := segmentsAt + i*sharedEntry
		if atomic.LoadUint64(t.word(at+16)) == 1 {
			ids = append(ids, *t.word(at + 8))
		}
	}
	return ids
}

// sharedDump is the shared memory of one dump.
type sharedDump struct {
	source *sharedmem.Source
	table  *sharedTable
	// sent says that it was sent while the pod ran, begun that freeze was called.
	sent, begun bool
	// left are the segments that CRIU leaves out.
	left []sharedmem.Left
	// done is closed when everything that had changed by the freeze is sent, or err
	// says why not.
	done  chan struct{}
	stats sharedmem.PassStats
	err   error
}

func newSharedDump(cgroup string) (*sharedDump, error) {
	table, err := newSharedTable()
	if err != nil {
		return nil, err
	}
	source, err := sharedmem.NewSource(cgroup)
	if err != nil {
		return nil, errors.Join(err, table.close())
	}
	return &sharedDump{source: source, table: table, done: make(chan struct{})}, nil
}

// freeze tells CRIU what to leave out, and begins to send what has changed. The pod is
// frozen.
func (s *sharedDump) freeze(ctx context.Context, out *frameWriter, beside *sync.WaitGroup) error {
	s.begun = true
	if !s.sent {
		close(s.done)
		return nil
	}
	var err error
	if s.left, err = s.source.Freeze(); err != nil {
		close(s.done)
		return err
	}
	s.table.set(s.left)
	beside.Go(func() {
		defer close(s.done)
		s.stats, s.err = s.source.Finish(ctx, out)
	})
	return nil
}

// complete waits until everything is sent, once CRIU has dumped everything, and says
// which segments the target has from podd.
func (s *sharedDump) complete(out *frameWriter, stats *PageStats) error {
	begin := time.Now()
	<-s.done
	if s.err != nil {
		return s.err
	}
	stats.SharedWait = time.Since(begin)
	stats.Shared = s.stats.Changed
	for _, id := range s.table.cut() {
		if err := out.write(frame{op: opSharedWhole, image: shmemImage(id)}, nil); err != nil {
			return err
		}
		stats.Segments++
	}
	return nil
}

// mapped is how much of the segments each process shows in its mappings, in bytes.
func (s *sharedDump) mapped() map[int]uint64 {
	all := map[int]uint64{}
	for _, segment := range s.left {
		for pid, bytes := range segment.MappedBy {
			all[pid] += bytes
		}
	}
	return all
}

func (s *sharedDump) close() error {
	s.source.Close()
	return s.table.close()
}
