//go:build root

package checkpoint

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// carrier carries memory as podd does: it takes a copy of it when the pod is frozen,
// and fills it in on the other side.
type carrier struct {
	mu     sync.Mutex
	copies map[int][]memoryCopy // by the number in the pod
	uffds  map[int]int
	faults int
	err    error

	serving sync.WaitGroup
	stop    chan struct{}
}

type memoryCopy struct {
	start uint64
	data  []byte
}

func newCarrier(t *testing.T) *carrier {
	c := &carrier{copies: map[int][]memoryCopy{}, uffds: map[int]int{}, stop: make(chan struct{})}
	t.Cleanup(func() {
		close(c.stop)
		c.serving.Wait()
		if c.err != nil {
			t.Error(c.err)
		}
	})
	return c
}

// carriedMapping is the least size of a mapping that is carried, in bytes.
const carriedMapping = 64 << 10

// leaveOut copies all private anonymous memory of the pod, but for the pages that stacks
// are in.
func (c *carrier) leaveOut(init int) func(context.Context) ([]MemoryRange, error) {
	return func(context.Context) ([]MemoryRange, error) {
		processes, err := procfs.PodProcesses(init)
		if err != nil {
			return nil, err
		}
		var all []MemoryRange
		for _, stat := range processes {
			ranges, err := carriedRanges(stat.PID)
			if err != nil {
				return nil, err
			}
			numbers, err := procfs.NamespacePIDs(stat.PID)
			if err != nil {
				return nil, err
			}
			for _, r := range ranges {
				data, err := readMemory(stat.PID, r.Start, int(r.End-r.Start))
				if err != nil {
					return nil, err
				}
				number := numbers[len(numbers)-1]
				c.copies[number] = append(c.copies[number], memoryCopy{r.Start, data})
			}
			all = append(all, ranges...)
		}
		return all, nil
	}
}

func carriedRanges(pid int) ([]MemoryRange, error) {
	stacks := map[uint64]bool{}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return nil, err
	}
	for _, thread := range threads {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/syscall", pid, thread.Name()))
		if err != nil {
			return nil, err
		}
		var pointer uint64
		if words := strings.Fields(string(b)); len(words) > 2 {
			fmt.Sscanf(words[len(words)-2], "0x%x", &pointer)
		}
		stacks[pointer/pageSize*pageSize] = true
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	var ranges []MemoryRange
	for line := range strings.Lines(string(b)) {
		words := strings.Fields(line)
		if words[1] != "rw-p" || words[4] != "0" || len(words) > 5 && words[5] != "[heap]" {
			continue
		}
		var start, end uint64
		fmt.Sscanf(words[0], "%x-%x", &start, &end)
		if end-start < carriedMapping || end-start > 1<<30 {
			continue
		}
		for at := start; at < end; {
			next := at
			for next < end && !stacks[next] {
				next += pageSize
			}
			if next > at {
				ranges = append(ranges, MemoryRange{pid, at, next})
			}
			at = next + pageSize
		}
	}
	return ranges, nil
}

// readMemory waits for memory that is missing, which reads of /proc/PID/mem don't.
func readMemory(pid int, start uint64, size int) ([]byte, error) {
	b := make([]byte, size)
	for done := 0; done < size; {
		n, err := unix.ProcessVMReadv(pid, []unix.Iovec{{Base: &b[done], Len: uint64(size - done)}},
			[]unix.RemoteIovec{{Base: uintptr(start) + uintptr(done), Len: size - done}}, 0)
		if err != nil {
			return nil, fmt.Errorf("reading process %d at %#x: %w", pid, start, err)
		}
		done += n
	}
	return b, nil
}

// lazy serves the faults of one process.
func (c *carrier) lazy(pid int, uffd *os.File) error {
	fd, err := unix.Dup(int(uffd.Fd()))
	uffd.Close()
	if err != nil {
		return err
	}
	// A blocking one can't be polled, and Fd must not have made it one.
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		return fmt.Errorf("the userfaultfd has the flags %#x, %v", flags, err)
	}
	c.mu.Lock()
	c.uffds[pid] = fd
	copies := c.copies[pid]
	c.mu.Unlock()
	c.serving.Go(func() {
		defer unix.Close(fd)
		if err := c.serve(fd, copies); err != nil {
			c.mu.Lock()
			c.err = fmt.Errorf("process %d: %w", pid, err)
			c.mu.Unlock()
		}
	})
	return nil
}

// serve fills in what is asked for, until stop. Sizes and numbers are those of
// include/uapi/linux/userfaultfd.h.
func (c *carrier) serve(uffd int, copies []memoryCopy) error {
	for {
		select {
		case <-c.stop:
			return nil
		default:
		}
		fds := []unix.PollFd{{Fd: int32(uffd), Events: unix.POLLIN}}
		if n, err := unix.Poll(fds, 10); n == 0 || err != nil {
			continue
		}
		var message [32]byte
		if _, err := unix.Read(uffd, message[:]); errors.Is(err, unix.EAGAIN) {
			continue
		} else if err != nil {
			return err
		}
		if message[0] != 0x12 {
			continue // not a fault
		}
		c.mu.Lock()
		c.faults++
		c.mu.Unlock()
		if err := fillAt(uffd, copies, binary.NativeEndian.Uint64(message[16:])/pageSize*pageSize); err != nil {
			return err
		}
	}
}

func fillAt(uffd int, copies []memoryCopy, address uint64) error {
	for {
		number, arg := uintptr(0xc020aa04), []uint64{address, pageSize, 0, 0} // UFFDIO_ZEROPAGE
		for i := range copies {
			if m := &copies[i]; address >= m.start && address < m.start+uint64(len(m.data)) {
				offset := address - m.start
				size := min(256<<10, uint64(len(m.data))-offset)
				// UFFDIO_COPY
				number, arg = 0xc028aa03, []uint64{address, uint64(uintptr(unsafe.Pointer(&m.data[offset]))), size, 0, 0}
			}
		}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(uffd), number, uintptr(unsafe.Pointer(&arg[0])))
		switch errno {
		case unix.EAGAIN:
			// Part of it may be there.
			if done := int64(arg[len(arg)-1]); done > 0 {
				return nil
			}
		case 0, unix.EEXIST, unix.ENOENT, unix.ESRCH:
			return nil
		default:
			return fmt.Errorf("filling %#x: %w", address, errno)
		}
	}
}

// equal compares what was copied with what is there in the restored pod.
func (c *carrier) equal(t *testing.T, init int) {
	t.Helper()
	processes, err := procfs.PodProcesses(init)
	must(t, err)
	seen := 0
	for _, stat := range processes {
		numbers, err := procfs.NamespacePIDs(stat.PID)
		must(t, err)
		for _, m := range c.copies[numbers[len(numbers)-1]] {
			is, err := readMemory(stat.PID, m.start, len(m.data))
			must(t, err)
			if !bytes.Equal(is, m.data) {
				t.Errorf("memory of process %d at %#x is not what it was", numbers[len(numbers)-1], m.start)
			}
			seen++
		}
	}
	want := 0
	for _, m := range c.copies {
		want += len(m)
	}
	if seen == 0 || seen != want {
		t.Errorf("%d ranges compared, want %d", seen, want)
	}
}

// lazyMove is begin with memory that is carried.
func lazyMove(t *testing.T, e *Engine, pid int, from, to *place) (*move, *carrier) {
	t.Helper()
	c := newCarrier(t)
	m := beginWith(t, e, pid, from, to,
		func(o *DumpOptions) { o.LeaveOut = c.leaveOut(pid) },
		func(o *RestoreOptions) { o.Lazy = c.lazy })
	c.mu.Lock()
	faults := c.faults
	c.mu.Unlock()
	t.Logf("%d bytes were left out, %d faults until the hold", m.result.LeftOut, faults)
	return m, c
}

func TestLazyMove(t *testing.T) {
	for name, root := range cgroupRoots(t) {
		t.Run(name, func(t *testing.T) { testLazyMove(t, newWorldIn(t, root)) })
	}
}

func testLazyMove(t *testing.T, w *world) {
	e := openEngine(t)
	must(t, e.CanLeaveOut())
	must(t, e.CanRestoreLazily())
	pod := w.source.start(t, 16)
	c := w.control(t)
	for range 3 {
		c.do(t, "spawn 0")
	}
	was := c.ask(t)
	s := w.stream(t)
	pid := pod.pid
	from, to := w.source, w.target
	for range 2 {
		s.progress(t)
		m, carrier := lazyMove(t, e, pid, from, to)
		if m.result.LeftOut < 16<<20 {
			t.Errorf("%d bytes were left out", m.result.LeftOut)
		}
		if m.result.Pages.Bytes > 4<<20 {
			t.Errorf("%d bytes are in the image", m.result.Pages.Bytes)
		}
		if len(carrier.uffds) != 4 || m.result.Processes != 4 {
			t.Errorf("%d userfaultfds of %d processes, want 4", len(carrier.uffds), m.result.Processes)
		}
		carrier.equal(t, m.init)
		m.commit(t)
		from.empty(t)
		s.progress(t)
		unharmed(t, c, was)
		from.clear(t)
		to.clear(t)
		pid = m.init
		from, to = to, from
	}
	s.finish(t)
}

// TestLazyAbort gives up a lazy restore at the hold: nothing is left of it.
func TestLazyAbort(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 4)
	c := w.control(t)
	was := c.ask(t)
	s := w.stream(t)
	for _, how := range []string{"abort", "CRIU killed", "dump killed"} {
		t.Run(how, func(t *testing.T) {
			w.source.clear(t)
			w.target.clear(t)
			m, _ := lazyMove(t, e, pod.pid, w.source, w.target)
			switch how {
			case "CRIU killed":
				must(t, m.restore.worker.cmd.Process.Kill())
				<-m.restore.Exited()
				if err := m.restore.Commit(t.Context()); err == nil {
					t.Error("committed without CRIU")
				}
			case "dump killed":
				must(t, m.dump.worker.cmd.Process.Kill())
				<-m.dump.Exited()
			}
			must(t, m.restore.Abort())
			w.target.empty(t)
			if err := unix.Kill(m.init, 0); err != unix.ESRCH {
				t.Errorf("the restored init is still there: %v", err)
			}
			if names, err := os.ReadDir(w.target.work); err != nil || strings.Contains(fmt.Sprint(names), lazySocket) {
				t.Errorf("left over: %v, %v", names, err)
			}
			must(t, m.dump.Abort())
			s.progress(t)
			unharmed(t, c, was)
		})
	}
	// And once more, to the end.
	w.source.clear(t)
	w.target.clear(t)
	m, _ := lazyMove(t, e, pod.pid, w.source, w.target)
	m.commit(t)
	s.finish(t)
	unharmed(t, c, was)
}

// TestLazyRefused has nobody take the userfaultfds, or restores without them.
func TestLazyRefused(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 4)
	c := w.control(t)
	was := c.ask(t)
	m, _ := lazyMove(t, e, pod.pid, w.source, w.target)
	must(t, m.restore.Abort())

	reason := errors.New("nobody wants it")
	o := w.target.restoreOptions()
	o.Lazy = func(_ int, uffd *os.File) error { uffd.Close(); return reason }
	r, err := e.PrepareRestore(t.Context(), o)
	must(t, err)
	if _, err := r.Run(t.Context()); !errors.Is(err, reason) {
		t.Errorf("error is %v", err)
	}
	w.target.empty(t)

	r, err = e.PrepareRestore(t.Context(), w.target.restoreOptions())
	must(t, err)
	if _, err := r.Run(t.Context()); !errors.Is(err, errLeftOut) {
		t.Errorf("error is %v", err)
	}
	w.target.empty(t)
	must(t, m.dump.Abort())
	unharmed(t, c, was)
}

// TestLeaveOutFails has the caller of a dump fail in the middle: the pod goes on.
func TestLeaveOutFails(t *testing.T) {
	w := newWorld(t)
	e := openEngine(t)
	pod := w.source.start(t, 4)
	c := w.control(t)
	was := c.ask(t)
	reason := errors.New("no idea")
	for name, leaveOut := range map[string]func(context.Context) ([]MemoryRange, error){
		"error": func(context.Context) ([]MemoryRange, error) { return nil, reason },
		"overlap": func(context.Context) ([]MemoryRange, error) {
			return []MemoryRange{{pod.pid, 0x10000, 0x20000}, {pod.pid, 0x1f000, 0x30000}}, nil
		},
	} {
		w.source.clear(t)
		o := w.source.dumpOptions(pod.pid)
		o.Pages, o.LeaveOut = new(bytes.Buffer), leaveOut
		d, err := e.PrepareDump(t.Context(), o)
		must(t, err)
		if _, err := d.Run(t.Context()); err == nil || name == "error" && !errors.Is(err, reason) {
			t.Errorf("%s: error is %v", name, err)
		}
		unharmed(t, c, was)
	}
	o := w.source.dumpOptions(pod.pid)
	o.LeaveOut = func(context.Context) ([]MemoryRange, error) { return nil, nil }
	if _, err := e.PrepareDump(t.Context(), o); err == nil {
		t.Error("memory is left out of an image that keeps its pages")
	}
}
