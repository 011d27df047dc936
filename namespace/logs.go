package namespace

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// Position counts the bytes the main command has written so far. The logs go
// where the pod goes, so a position holds on any host. What a terminal shows is
// all Stdout.
type Position struct {
	Stdout int64 `json:"stdout"`
	Stderr int64 `json:"stderr"`
}

// LogOptions say where to begin and whether to go on.
type LogOptions struct {
	// From begins there, or with the oldest that is kept if that is later.
	From *Position
	// Tail, without From, begins that many lines before the end of each
	// stream; negative means with the oldest that is kept.
	Tail int
	// Follow goes on until the pod has ended.
	Follow bool
}

// Output is a piece of what the main command wrote: one of Stdout and Stderr,
// neither in the first that Logs hands out. Position is where the reader is
// after it.
type Output struct {
	Stdout, Stderr []byte
	Position       Position
}

// LogSegmentsKept is how many whole segments of each stream podinit keeps beside
// the one it writes.
const LogSegmentsKept = 3

// logChunk is the most that Logs hands out at once, in bytes.
const logChunk = 32 << 10

// Logs calls emit with what the main command wrote, and stops at emit's error,
// which it returns. The slices are valid only during the call. Between stdout
// and stderr the order of writing is kept only as far as the reader keeps up.
// Without Follow, or when the pod has ended, Logs returns nil after the last
// byte.
func (c *Container) Logs(ctx context.Context, opts LogOptions, emit func(Output) error) error {
	// Ended first, then read to the end: nothing is written later.
	var watch *logWatch
	if _, running := c.PID(); running && opts.Follow {
		var err error
		if watch, err = c.watchLogs(ctx); err != nil {
			return fmt.Errorf("following the log of %s: %w", c.id, err)
		}
		defer watch.close()
	}
	dir, err := c.initDir()
	if err != nil {
		return fmt.Errorf("reading the log of %s: %w", c.id, err)
	}
	defer dir.Close()
	streams := [2]*logStream{{dir: dir, name: "stdout"}, {dir: dir, name: "stderr"}}
	for i, s := range streams {
		defer s.close()
		var err error
		switch {
		case opts.From != nil:
			s.pos = [2]int64{opts.From.Stdout, opts.From.Stderr}[i]
		case opts.Tail >= 0:
			s.pos, err = s.tail(opts.Tail)
		}
		if err != nil {
			return fmt.Errorf("reading the log of %s: %w", c.id, err)
		}
	}
	// First of all where the reader is, for one that has to begin anew.
	if err := emit(Output{Position: Position{streams[0].pos, streams[1].pos}}); err != nil {
		return err
	}
	for {
		// Asked before reading: what is read after the end is all there is.
		ended := watch == nil || watch.ended()
		if err := copyLogs(ctx, streams, emit); err != nil {
			return err
		}
		if ended {
			return nil
		}
		if err := watch.wait(ctx); err != nil {
			return fmt.Errorf("following the log of %s: %w", c.id, err)
		}
	}
}

// copyLogs emits what there is.
func copyLogs(ctx context.Context, streams [2]*logStream, emit func(Output) error) error {
	buf := make([]byte, logChunk)
	for more := true; more; {
		more = false
		for i, s := range streams {
			if err := ctx.Err(); err != nil {
				return err
			}
			n, err := s.read(buf)
			if err != nil {
				return fmt.Errorf("reading a log: %w", err)
			}
			if n == 0 {
				continue
			}
			more = true
			out := Output{Position: Position{streams[0].pos, streams[1].pos}}
			if i == 0 {
				out.Stdout = buf[:n]
			} else {
				out.Stderr = buf[:n]
			}
			if err := emit(out); err != nil {
				return err
			}
		}
	}
	return nil
}

// initDir opens the directory of the logs: through the mounted overlay, where
// changes can be watched, or in the upper layer once that is gone.
func (c *Container) initDir() (*os.File, error) {
	for _, path := range []string{c.paths.rootfs, c.paths.upper} {
		root, err := openDir(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		dir, err := openIn(root, initDir, unix.O_DIRECTORY|unix.O_RDONLY, false)
		root.Close()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return dir, err
	}
	return nil, fmt.Errorf("files of %s: %w", c.id, pod.ErrNotFound)
}

// logStream reads the segments of one stream as one.
type logStream struct {
	dir  *os.File
	name string
	pos  int64 // of the next byte, from the beginning of the stream
	// file is the segment that begins at base; nil before the first.
	file *os.File
	base int64
}

func (s *logStream) close() {
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}

// maxSegments bounds how many names are looked at: the pod's root might fill
// the directory.
const maxSegments = 1024

// segments lists where the segments begin that are there.
func (s *logStream) segments() ([]int64, error) {
	// A descriptor of its own, because its reading position is.
	dir, err := openIn(s.dir, ".", unix.O_DIRECTORY|unix.O_RDONLY, false)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(maxSegments)
	if err != nil && err != io.EOF {
		return nil, err
	}
	var bases []int64
	for _, name := range names {
		if number, ok := strings.CutPrefix(name, s.name+"."); ok {
			if base, err := strconv.ParseInt(number, 10, 64); err == nil && base >= 0 {
				bases = append(bases, base)
			}
		}
	}
	return bases, nil
}

// open opens the segment that holds pos. If it is not kept any more, pos moves
// on to the first that is. It returns false if there is none.
func (s *logStream) open() (bool, error) {
	bases, err := s.segments()
	if err != nil || len(bases) == 0 {
		return false, err
	}
	first, best := bases[0], int64(-1)
	for _, base := range bases {
		first = min(first, base)
		if base <= s.pos {
			best = max(best, base)
		}
	}
	if best < 0 {
		best, s.pos = first, first
	}
	if s.file != nil && best == s.base {
		return false, nil
	}
	f, err := openRegular(s.dir, s.name+"."+strconv.FormatInt(best, 10), false)
	if errors.Is(err, fs.ErrNotExist) { // removed meanwhile; a later one is there
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s.close()
	s.file, s.base = f, best
	return true, nil
}

// read reads at pos; 0 means that there is nothing now.
func (s *logStream) read(buf []byte) (int, error) {
	for {
		if s.file != nil {
			n, err := s.file.ReadAt(buf, s.pos-s.base)
			s.pos += int64(n)
			if n > 0 {
				return n, nil
			}
			if err != io.EOF {
				return 0, err
			}
		}
		if opened, err := s.open(); err != nil || !opened {
			return 0, err
		}
	}
}

// tail finds the position n lines before the end, in what is kept.
func (s *logStream) tail(n int) (int64, error) {
	defer s.close()
	// The starts of the last n lines, oldest first, and the end.
	var starts []int64
	buf := make([]byte, logChunk)
	newline := true
	for {
		got, err := s.read(buf)
		if err != nil {
			return 0, err
		}
		if got == 0 {
			break
		}
		before := s.pos - int64(got)
		for i, b := range buf[:got] {
			if newline {
				if starts = append(starts, before+int64(i)); len(starts) > n {
					starts = starts[1:]
				}
			}
			newline = b == '\n'
		}
	}
	if len(starts) == 0 || n == 0 {
		return s.pos, nil
	}
	return starts[0], nil
}

// logWatch tells when the logs have changed or the pod has ended.
type logWatch struct {
	inotify *os.File
	cancel  context.CancelFunc
	exited  chan struct{}
}

func (c *Container) watchLogs(ctx context.Context) (*logWatch, error) {
	dir, err := c.initDir()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("creating an inotify descriptor: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	if _, err := unix.InotifyAddWatch(fd, fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), unix.IN_MODIFY|unix.IN_CREATE); err != nil {
		return nil, errors.Join(fmt.Errorf("watching %s: %w", dir.Name(), err), f.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	w := &logWatch{inotify: f, cancel: cancel, exited: make(chan struct{})}
	go func() {
		defer close(w.exited)
		// However the waiting ends, the reader must look: at the rest of the
		// log, at its context, or at the descriptor, which is closed.
		_, _ = c.Wait(ctx)
		_ = f.SetReadDeadline(time.Unix(1, 0))
	}()
	return w, nil
}

func (w *logWatch) close() {
	w.cancel()
	<-w.exited
	w.inotify.Close()
}

func (w *logWatch) ended() bool {
	select {
	case <-w.exited:
		return true
	default:
		return false
	}
}

// wait returns when there may be something new.
func (w *logWatch) wait(ctx context.Context) error {
	buf := make([]byte, 4096)
	_, err := w.inotify.Read(buf)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		<-w.exited
		return ctx.Err()
	}
	return err
}
