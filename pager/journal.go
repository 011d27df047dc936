package pager

import (
	"path/filepath"
	"sync/atomic"
	"unsafe"
)

const (
	journalSize     = 4096
	journalMessages = 64 // where they begin; before them: u32 id of the space
	// messagesAtOnce is how many messages are read with one call.
	messagesAtOnce = 16
)

// journal is the file into which messages are read. The kernel forgets a message
// in the system call that writes it, so that a message is either still with the
// kernel or here, whenever the pager dies.
type journal struct {
	b        []byte
	messages []message
}

func openJournal(dir string) (*journal, error) {
	b, err := mapFile(filepath.Join(dir, "journal"), journalSize)
	if err != nil {
		return nil, err
	}
	return &journal{b, unsafe.Slice((*message)(unsafe.Pointer(&b[journalMessages])), messagesAtOnce)}, nil
}

func (j *journal) space() *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&j.b[0])) }

// read reads messages of a space: as many as the result says are in messages.
func (j *journal) read(s *space) (int, error) {
	j.space().Store(uint32(s.id))
	return s.uffd.read(j.messages)
}

// done says that a message was obeyed.
func (j *journal) done(i int) { j.messages[i] = message{} }

// left returns the space whose messages were read but not all obeyed, if there are
// any.
func (j *journal) left() (id int, some bool) {
	for i := range j.messages {
		some = some || j.messages[i].event() != 0
	}
	return int(j.space().Load()), some
}
