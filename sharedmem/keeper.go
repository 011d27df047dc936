package sharedmem

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"podd/netconn"
	"podd/pagesync"
	"podd/procfs"
	"podd/reserve"
)

// Subcommand is the first argument of the program that calls Main.
const Subcommand = "shared-memory"

// endTimeout bounds the wait for a keeper's process to end.
const endTimeout = 5 * time.Second

var (
	// ErrSource means that the source sent what no Source does.
	ErrSource = errors.New("the source of shared memory sent something impossible")
	// ErrTooMuch means that it sent more than it may.
	ErrTooMuch = errors.New("too much shared memory")
)

// KeeperOptions say where shared memory is kept.
type KeeperOptions struct {
	// Dir is the directory of the images that it belongs to. It must exist when
	// the first segment comes.
	Dir string
	// Executable is the program that calls Main when its first argument is
	// Subcommand.
	Executable string
	// JoinCgroup puts a process into the pod's cgroup.
	JoinCgroup func(pid int) error
	// MaxBytes is the most memory that may come, in bytes.
	MaxBytes int64
}

// Keeper is podd's handle of the process that keeps the shared memory of a pod which
// comes here. It is a Sink that trusts nobody. The process is started with the first
// segment. It is for one goroutine.
type Keeper struct {
	o         KeeperOptions
	dir       *os.File
	conn      *net.UnixConn
	segments  map[uint64]*kept
	allocated int64 // bytes, of all
	meter     reserve.Meter
}

// kept is a segment that podd fills.
type kept struct {
	file  *os.File
	size  int64
	pages map[int64]uint64 // allocated, by the offset of their chunk
}

// NewKeeper returns a Keeper of nothing.
func NewKeeper(o KeeperOptions) *Keeper {
	return &Keeper{o: o, segments: map[uint64]*kept{}}
}

// start starts the process.
func (k *Keeper) start() (err error) {
	if k.dir, err = os.Open(k.o.Dir); err != nil {
		return err
	}
	listener, err := netconn.ListenIn("unixpacket", k.dir, SocketName)
	if err != nil {
		return err
	}
	defer listener.Close()
	file, err := listener.File()
	if err != nil {
		return err
	}
	defer file.Close()
	cmd := exec.Command(k.o.Executable, Subcommand)
	cmd.Dir = "/"
	cmd.Env = []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it outlives podd, and its terminal
	cmd.ExtraFiles = []*os.File{file, k.dir}
	if err := cmd.Start(); err != nil {
		return err
	}
	// Whoever is a child when podd ends is somebody else's to reap.
	go func() { _ = cmd.Wait() }()
	if err := k.o.JoinCgroup(cmd.Process.Pid); err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	// It goes before podd when memory runs short, as CRIU does.
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", cmd.Process.Pid), []byte("0"), 0); err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	if k.conn, err = connect(k.dir); err != nil {
		return errors.Join(err, cmd.Process.Kill())
	}
	return nil
}

// Segment begins a segment, or gives it another size.
func (k *Keeper) Segment(s Segment) error {
	if s.ID == 0 || s.ID > maxID || s.Size <= 0 || len(s.Name) > MaxName || strings.ContainsRune(s.Name, 0) {
		return fmt.Errorf("%w: segment %d of %d bytes", ErrSource, s.ID, s.Size)
	}
	if k.conn == nil {
		if err := k.start(); err != nil {
			return fmt.Errorf("starting the keeper of shared memory: %w", err)
		}
	}
	g := k.segments[s.ID]
	if g == nil {
		if len(k.segments) == MaxSegments {
			return fmt.Errorf("%w: more than %d segments", ErrTooMuch, MaxSegments)
		}
		_, file, err := ask(k.conn, request{op: opCreate, sealable: s.Sealable, id: s.ID, name: s.Name})
		if err == nil && file == nil {
			err = errors.New("it comes without a descriptor")
		}
		if err != nil {
			return fmt.Errorf("making shared memory %d: %w", s.ID, err)
		}
		g = &kept{file: file, pages: map[int64]uint64{}}
		k.segments[s.ID] = g
	}
	if err := unix.Ftruncate(int(g.file.Fd()), s.Size); err != nil {
		return fmt.Errorf("giving shared memory %d its size of %d bytes: %w", s.ID, s.Size, err)
	}
	if s.Size < g.size {
		k.free(g, s.Size, g.size)
	}
	g.size = s.Size
	return nil
}

// free notes that whole pages between two offsets are holes.
func (k *Keeper) free(g *kept, start, end int64) {
	start = (start + pageSize - 1) &^ (pageSize - 1)
	if end-start > int64(len(g.pages))*chunkSize {
		for at := range g.pages {
			k.freeIn(g, at, start, end)
		}
		return
	}
	for at := start &^ (chunkSize - 1); at < end; at += chunkSize {
		k.freeIn(g, at, start, end)
	}
}

func (k *Keeper) freeIn(g *kept, at, start, end int64) {
	mask := pagesOf(at, start, end)
	k.allocated -= int64(bits.OnesCount64(g.pages[at]&mask)) * pageSize
	if g.pages[at] &^= mask; g.pages[at] == 0 {
		delete(g.pages, at)
	}
}

// pagesOf returns the pages of the chunk at an offset that lie between two others.
func pagesOf(at, start, end int64) uint64 {
	start, end = max(start, at), min(end, at+chunkSize)
	if start >= end {
		return 0
	}
	first, n := (start-at)/pageSize, (end-start+pageSize-1)/pageSize
	return ^uint64(0) >> (chunkPages - n) << first
}

// find returns a segment, and refuses what is not inside it.
func (k *Keeper) find(id uint64, offset, length int64) (*kept, error) {
	g := k.segments[id]
	if g == nil || offset < 0 || offset%pageSize != 0 || length <= 0 || offset >= g.size || length > (g.size-offset+pageSize-1)&^(pageSize-1) {
		return nil, fmt.Errorf("%w: %d bytes at %#x of segment %d", ErrSource, length, offset, id)
	}
	return g, nil
}

// Pages stores whole pages.
func (k *Keeper) Pages(id uint64, offset int64, content []byte) error {
	g, err := k.find(id, offset, int64(len(content)))
	if err != nil {
		return err
	}
	if err := k.allocate(id, g, offset, int64(len(content))); err != nil {
		return err
	}
	content = content[:min(int64(len(content)), g.size-offset)]
	for len(content) > 0 {
		n, err := unix.Pwrite(int(g.file.Fd()), content, offset)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("storing shared memory %d: %w", id, err)
		}
		content, offset = content[n:], offset+int64(n)
	}
	return nil
}

// allocate has the process allocate what was not yet.
func (k *Keeper) allocate(id uint64, g *kept, offset, length int64) error {
	for at := offset &^ (chunkSize - 1); at < offset+length; at += chunkSize {
		missing := pagesOf(at, offset, offset+length) &^ g.pages[at]
		if missing == 0 {
			continue
		}
		bytes := int64(bits.OnesCount64(missing)) * pageSize
		if k.allocated += bytes; k.allocated > k.o.MaxBytes {
			return fmt.Errorf("%w: more than the %d MiB that are expected", ErrTooMuch, k.o.MaxBytes>>20)
		}
		if err := k.meter.Add(int(g.file.Fd()), bytes, 0); err != nil {
			return fmt.Errorf("storing shared memory: %w", err)
		}
		for first, n := range pagesync.Runs(missing) {
			if _, _, err := ask(k.conn, request{op: opAllocate, id: id, offset: at + int64(first)*pageSize, length: int64(n) * pageSize}); err != nil {
				return fmt.Errorf("allocating shared memory %d in the pod's cgroup: %w", id, err)
			}
		}
		g.pages[at] |= missing
	}
	return nil
}

// Hole frees pages.
func (k *Keeper) Hole(id uint64, offset, length int64) error {
	g, err := k.find(id, offset, length)
	if err != nil {
		return err
	}
	length = (length + pageSize - 1) &^ (pageSize - 1)
	if err := unix.Fallocate(int(g.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, length); err != nil {
		return fmt.Errorf("freeing shared memory %d: %w", id, err)
	}
	k.free(g, offset, offset+length)
	return nil
}

// Drop forgets a segment.
func (k *Keeper) Drop(id uint64) error {
	g := k.segments[id]
	if g == nil {
		return fmt.Errorf("%w: segment %d is dropped, and was never begun", ErrSource, id)
	}
	k.free(g, 0, g.size)
	delete(k.segments, id)
	g.file.Close()
	if _, _, err := ask(k.conn, request{op: opDrop, id: id}); err != nil {
		return fmt.Errorf("dropping shared memory %d: %w", id, err)
	}
	return nil
}

// Bytes is how much memory is kept.
func (k *Keeper) Bytes() int64 { return k.allocated }

// Close ends the handle and leaves the process, if there is one, at work: for restores.
func (k *Keeper) Close() {
	for _, g := range k.segments {
		g.file.Close()
	}
	k.segments = map[uint64]*kept{}
	if k.conn != nil {
		k.conn.Close()
	}
	if k.dir != nil {
		k.dir.Close()
	}
	k.conn, k.dir = nil, nil
}

// End ends the process that keeps shared memory for the images in a directory, if there
// is one, whoever has started it, and returns when it has ended.
func End(dir string) error {
	if err := end(dir); err != nil {
		return fmt.Errorf("ending the keeper of shared memory: %w", err)
	}
	return nil
}

// Find returns the pid of that process, or 0.
func Find(dir string) (pid int, err error) {
	conn, err := reach(dir)
	if err == nil && conn != nil {
		defer conn.Close()
		pid, _, err = ask(conn, request{op: opWho})
		err = gone(err)
	}
	if err != nil {
		return 0, fmt.Errorf("finding the keeper of shared memory: %w", err)
	}
	return pid, nil
}

// reach connects to the keeper of a directory, nil if there is none. Nobody waits long
// for it to answer.
func reach(path string) (*net.UnixConn, error) {
	if _, err := os.Lstat(filepath.Join(path, SocketName)); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	dir, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	conn, err := connect(dir)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it has ended
	}
	if err != nil {
		return nil, err
	}
	if err := conn.SetDeadline(time.Now().Add(endTimeout)); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func end(dir string) error {
	conn, err := reach(dir)
	if err != nil || conn == nil {
		return err
	}
	defer conn.Close()
	pid, _, err := ask(conn, request{op: opWho})
	if err != nil {
		return gone(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return gone(err)
	}
	defer unix.Close(fd)
	if _, _, err := ask(conn, request{op: opEnd}); err != nil {
		return gone(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	if err := procfs.WaitExit(ctx, fd); err != nil {
		return fmt.Errorf("it does not end: %w", err)
	}
	return nil
}

// gone is nil for an error that says that the other end has ended.
func gone(err error) error {
	for _, ended := range []error{unix.EPIPE, unix.ECONNRESET, unix.ESRCH, errEnded} {
		if errors.Is(err, ended) {
			return nil
		}
	}
	return err
}
