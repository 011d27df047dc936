package pager

import (
	"path/filepath"
	"sync/atomic"
	"unsafe"
)

const (
	journalSize    = 4096
	journalMessage = 64 // where it begins; before it: u32 id of the space
)

// journal is the file into which a message is read. The kernel forgets a message
// in the system call that writes it, so that a message is either still with the
// kernel or here, whenever the pager dies. There is place for one: whoever caused an
// event goes on as soon as it was read, and is to find that it was obeyed, too.
type journal struct {
	b       []byte
	message *message
}

func openJournal(dir string) (*journal, error) {
	b, err := mapFile(filepath.Join(dir, "journal"), journalSize)
	if err != nil {
		return nil, err
	}
	return &journal{b, (*message)(unsafe.Pointer(&b[journalMessage]))}, nil
}

func (j *journal) space() *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&j.b[0])) }

// read reads a message of a space, if there is one.
func (j *journal) read(s *space) (some bool, err error) {
	j.space().Store(uint32(s.id))
	return s.uffd.read(j.message)
}

// done says that the message was obeyed.
func (j *journal) done() { *j.message = message{} }

// left returns the space whose message was read but perhaps not obeyed, if there is
// one.
func (j *journal) left() (id int, some bool) {
	return int(j.space().Load()), j.message.event() != 0
}
