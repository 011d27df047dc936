package pager

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxChildren is how many children that lack something there may be; while
	// there are more the pod is frozen, until half of them have everything.
	maxChildren = 128
	// prefillTime bounds what is filled between Verify and Run.
	prefillTime = 50 * time.Millisecond
	// restTime is how long after Run only faults are served, the pages that follow
	// them, and what arrives: a pod that runs again has much to catch up with, and
	// copying what it does not need yet would keep it from the processors.
	restTime = 100 * time.Millisecond
	// aliveInterval is how often it is looked whether anybody still lives whose
	// memory is missing.
	aliveInterval = time.Second
	// retryPause is how long a pod whose memory is used up waits.
	retryPause = 20 * time.Millisecond
	// spins is how often a fault is tried again at once while the process changes
	// its mappings, before that is done once per millisecond.
	spins = 64
	// maxReads is how often a space may be read before others get their turn.
	maxReads = 64
	// calmTries is how often it is looked at once whether a process has gone on
	// after an event.
	calmTries = 64
	// againPause, in milliseconds, is how often threads are listened to that try a
	// missing page again and again (freezer).
	againPause = 1
	// backgroundNice is the nice value of copying that nobody waits for.
	backgroundNice = 5
)

// handler is the thread that obeys events and copies. Its fields are that
// thread's, unless they say otherwise.
type handler struct {
	dir     string
	log     *slog.Logger
	content *content
	journal *journal
	freezer freezer
	meta    *metaFile
	want    func() // wakes who sends wants; any goroutine's

	epoll, wakeup int
	commands      chan command
	spaces        map[int]*space
	order         []int // of spaces, ascending
	nextID        int
	turn          int // whose background is next
	buffer        []byte
	queue         []arrival // verified after the freeze, not looked at yet
	releases      []arrival // of the store, not done yet
	chunk         uint64    // pages copied at once in the background
	nice          int
	spun          int
	again         bool // a fault was about a page that was waited for
	crowded       bool // the pod is frozen for having too many children
	prefillUntil  time.Time
	restUntil     time.Time

	started   int64        // when the event that is obeyed was read, monotonic ns
	filled    atomic.Int64 // bytes
	faults    atomic.Int64
	worst     atomic.Int64 // ns
	children  atomic.Int64
	complete  atomic.Bool
	completed chan struct{} // closed with complete
}

// command is something for the handler's thread to do.
type command struct {
	do   func() error
	done chan error
}

func newHandler(dir string, log *slog.Logger, c *content, m *metaFile, f freezer) (*handler, error) {
	h := &handler{
		dir: dir, log: log, content: c, meta: m, freezer: f, want: func() {}, spaces: map[int]*space{},
		commands: make(chan command, 64), chunk: minChunk, completed: make(chan struct{}),
	}
	var err error
	if h.journal, err = openJournal(dir); err != nil {
		return nil, err
	}
	if h.buffer, err = unix.Mmap(-1, 0, maxChunk*pageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return nil, fmt.Errorf("making a buffer: %w", err)
	}
	if h.wakeup, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("making an eventfd: %w", err)
	}
	if h.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("making an epoll: %w", err)
	}
	if err := unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, h.wakeup, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: -1}); err != nil {
		return nil, fmt.Errorf("watching an eventfd: %w", err)
	}
	return h, nil
}

// poke makes the handler look at what arrived. Any goroutine may.
func (h *handler) poke() {
	unix.Write(h.wakeup, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // fails only when it is full of pokes
}

// do has the handler's thread do something.
func (h *handler) do(f func() error) error {
	c := command{f, make(chan error, 1)}
	select {
	case h.commands <- c:
	case <-h.completed:
		return errComplete
	}
	h.poke()
	select {
	case err := <-c.done:
		return err
	case <-h.completed:
		select {
		case err := <-c.done:
			return err
		default:
			return errComplete
		}
	}
}

var errComplete = errors.New("the memory is complete")

// run serves until everything is filled. An error means that something is wrong
// that another pager may do better.
func (h *handler) run() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(h.completed)
	events := make([]unix.EpollEvent, 64)
	lastAlive := time.Now()
	for {
		for len(h.commands) > 0 {
			c := <-h.commands
			c.done <- c.do()
		}
		busy, err := h.step()
		if err != nil {
			return err
		}
		if h.finished() {
			h.complete.Store(true)
			h.log.Info("everything is filled", "cpu", threadTime())
			return nil
		}
		timeout := int(aliveInterval.Milliseconds())
		switch {
		case busy:
			timeout = 0
		case h.postponed():
			if h.spun++; h.spun < spins {
				timeout = 0
			} else {
				timeout = 1
			}
		}
		if timeout > 0 {
			h.setNice(0)
			if rest := time.Until(h.restUntil); rest > 0 {
				timeout = min(timeout, int(rest.Milliseconds())+1)
			}
		}
		if h.again && timeout > 0 {
			// What arrives is not kept waiting. An error only makes it shorter.
			_, _ = unix.Poll([]unix.PollFd{{Fd: int32(h.wakeup), Events: unix.POLLIN}}, againPause)
		}
		h.again = false
		n, err := unix.EpollWait(h.epoll, events, timeout)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("waiting for events: %w", err)
		}
		for _, e := range events[:max(n, 0)] {
			if e.Fd < 0 {
				if err := h.arrived(); err != nil {
					return err
				}
			} else if s := h.spaces[int(e.Fd)]; s != nil {
				h.setNice(0)
				if err := h.read(s); err != nil {
					return err
				}
			}
		}
		if err := h.postponedFaults(); err != nil {
			return err
		}
		if time.Since(lastAlive) >= aliveInterval {
			lastAlive = time.Now()
			if err := h.buryDead(); err != nil {
				return err
			}
		}
	}
}

// setNice sets this thread's nice value.
func (h *handler) setNice(nice int) {
	if h.nice == nice {
		return
	}
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, nice); err == nil { // without the right to go back it is not tried
		h.nice = nice
	}
}

// add makes a space one of those that are served.
func (h *handler) add(s *space) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(s.id)}
	if err := unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, int(s.uffd), &e); err != nil {
		return fmt.Errorf("watching a userfaultfd: %w", err)
	}
	h.spaces[s.id] = s
	h.sortSpaces()
	return nil
}

func (h *handler) sortSpaces() {
	h.order = slices.Sorted(maps.Keys(h.spaces))
	children := 0
	for _, s := range h.spaces {
		if s.child {
			children++
		}
	}
	h.children.Store(int64(children))
}

// end ends a space, whose process is gone or has everything.
func (h *handler) end(s *space) error {
	if s.reading {
		s.ended = true // when its message was obeyed
		return nil
	}
	delete(h.spaces, s.id)
	h.sortSpaces()
	// Closing alone does not do it while somebody else has the descriptor.
	if err := unix.EpollCtl(h.epoll, unix.EPOLL_CTL_DEL, int(s.uffd), nil); err != nil {
		return fmt.Errorf("ending the filling of process %d: %w", s.pid, err)
	}
	if err := s.end(); err != nil {
		return fmt.Errorf("ending the filling of process %d: %w", s.pid, err)
	}
	return h.uncrowd()
}

func (h *handler) spacePath(id int) string { return filepath.Join(h.dir, fmt.Sprintf("space-%d", id)) }

// attach begins to serve a process that CRIU made. One with the same number that
// was there before is forgotten: its restore was given up.
func (h *handler) attach(pid, fd int) error {
	if h.meta.get().Running {
		unix.Close(fd)
		return errors.New("the pod runs already")
	}
	for _, s := range h.spaces {
		if s.pid == pid {
			if err := h.end(s); err != nil {
				unix.Close(fd)
				return err
			}
		}
	}
	h.releases = nil // the new one lacks everything
	_, err := h.newSpace(pid, fd, func(s *space) error {
		if h.content.isFinal() {
			return s.setRegions(h.content)
		}
		return nil
	})
	if err != nil || !slices.Contains(h.meta.get().Forgotten, pid) {
		return err
	}
	return h.meta.change(func(m *meta) {
		m.Forgotten = slices.DeleteFunc(m.Forgotten, func(p int) bool { return p == pid })
	})
}

// newSpace makes a space of a userfaultfd, which is closed if that fails.
func (h *handler) newSpace(pid, fd int, fill func(*space) error) (*space, error) {
	fail := func(err error) (*space, error) {
		unix.Close(fd)
		return nil, fmt.Errorf("beginning to fill process %d: %w", pid, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fail(err)
	}
	h.nextID++
	s, err := newSpace(h.spacePath(h.nextID), h.nextID, pid)
	if err != nil {
		return fail(err)
	}
	s.uffd = userfault(fd)
	s.setDescriptor(h.meta.get().Generation, fd)
	if err := errors.Join(fill(s), s.live()); err != nil {
		return fail(errors.Join(err, s.remove()))
	}
	return s, h.add(s)
}

// read reads and obeys what a space has to say.
func (h *handler) read(s *space) error {
	for range maxReads {
		some, err := h.journal.read(s)
		if err != nil {
			return fmt.Errorf("reading events of process %d: %w", s.pid, err)
		}
		if !some {
			return nil
		}
		h.started, s.reading = now(), true
		if err := h.obey(s, h.journal.message); err != nil {
			return err
		}
		h.journal.done()
		s.reading = false
		if s.ended {
			return h.end(s)
		}
	}
	return nil
}

// obey does what a message asks for. What is not a fault may be obeyed twice.
func (h *handler) obey(s *space, m *message) error {
	start, end := m.first(), m.second()
	switch m.event() {
	case eventPagefault:
		if s.ended {
			return nil
		}
		h.faults.Add(1)
		return h.fault(s, late{m.fault(), h.started})
	case eventFork:
		return h.fork(s, m.forked())
	case eventRemap:
		if err := s.remap(start, end, m.remapBytes()); err != nil {
			return err
		}
		end = start + m.remapBytes()
	case eventRemove:
		s.drop(start, end)
	case eventUnmap:
		if err := s.unmap(start, end); err != nil {
			return err
		}
	default:
		return fmt.Errorf("process %d: unknown event %#x", s.pid, m.event())
	}
	for range calmTries {
		if !s.unsettled {
			break
		}
		if err := h.calm(s); err != nil {
			return err
		}
	}
	// Who waits for a page of the range is to look again at what is there now.
	for address := range s.waiting {
		if address >= start && address < end {
			delete(s.waiting, address)
		}
	}
	if err := s.uffd.wake(start, end-start); err != nil && err != unix.EINVAL { // beyond what can be mapped
		return fmt.Errorf("waking process %d: %w", s.pid, err)
	}
	return nil
}

// calm is tried at once, since the process goes on now that its event was read, and
// may have changed its mappings again before long.
func (h *handler) calm(s *space) error {
	if s.uffd.changing() {
		return nil
	}
	return s.calm()
}

// fork begins to serve a child, unless that was done before.
func (h *handler) fork(parent *space, fd int) error {
	for _, s := range h.spaces {
		if int(s.uffd) == fd {
			return nil
		}
	}
	s, err := h.newSpace(parent.pid, fd, func(s *space) error {
		s.inherit(parent)
		return nil
	})
	if err != nil {
		return err
	}
	h.log.Debug("a process forked while memory is missing", "process", s.pid, "space", s.id)
	if h.children.Load() > maxChildren && !h.crowded {
		h.log.Warn("the pod forks faster than its memory can be filled; freezing it meanwhile", "children", h.children.Load())
		h.crowded = true
		return h.meta.freeze(h.freezer, crowdedCause)
	}
	return nil
}

const crowdedCause = "it forks faster than its memory can be filled"

// uncrowd thaws a pod that had too many children.
func (h *handler) uncrowd() error {
	if !h.crowded || h.children.Load() > maxChildren/2 {
		return nil
	}
	h.crowded = false
	return h.meta.thaw(h.freezer, crowdedCause)
}

// buryDead ends the spaces of processes that are gone.
func (h *handler) buryDead() error {
	if !h.meta.get().Running {
		return nil // a restore that is given up says so
	}
	for _, id := range slices.Clone(h.order) {
		if s := h.spaces[id]; !s.uffd.alive() {
			if err := h.end(s); err != nil {
				return err
			}
		}
	}
	return nil
}

// finished reports whether nothing is left to do.
func (h *handler) finished() bool {
	return len(h.spaces) == 0 && h.meta.get().Running
}

// threadTime is how long this thread has been on a processor.
func threadTime() time.Duration {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) // can't fail
	return time.Duration(t.Nano())
}

func now() int64 {
	var t unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &t) // can't fail
	return t.Nano()
}

// removeFiles deletes what only the filling needed.
func (h *handler) removeFiles() error {
	return errors.Join(h.content.remove(), os.Remove(filepath.Join(h.dir, "journal")))
}
