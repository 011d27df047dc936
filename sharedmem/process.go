package sharedmem

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The descriptors that a keeper's process begins with.
const (
	listenerFile  = 3
	directoryFile = 4
)

// directoryPoll is the pause between two looks at whether the images are still there.
const directoryPoll = 500 * time.Millisecond

// Main is the keeper's process: "podd shared-memory". It returns the exit status when it
// was told to end, or the directory of the images is gone.
func Main() int {
	// It waits most of the time, and what it takes is the pod's.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(20)
	if err := serve(); err != nil {
		slog.Error("the keeper of shared memory ends", "error", err)
		return 1
	}
	return 0
}

// server has the segments.
type server struct {
	mu       sync.Mutex
	segments map[uint64]*memfd
	end      chan struct{}
	once     sync.Once
}

// memfd is a segment.
type memfd struct {
	file     *os.File
	sealable bool
}

func newMemfd(name string, sealable bool) (*memfd, error) {
	flags := unix.MFD_CLOEXEC
	if sealable {
		flags |= unix.MFD_ALLOW_SEALING
	}
	fd, err := unix.MemfdCreate(name, flags)
	if err != nil {
		return nil, err
	}
	return &memfd{os.NewFile(uintptr(fd), name), sealable}, nil
}

// unsealed returns the memfd, or one like it if a restore that came to nothing has
// sealed it: another restore makes one without seals.
func (m *memfd) unsealed() (*memfd, error) {
	seals, err := unix.FcntlInt(m.file.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || !m.sealable || seals == 0 {
		return m, err
	}
	made, err := newMemfd(m.file.Name(), true)
	if err == nil {
		if err = copyFile(made.file, m.file); err == nil {
			return made, nil
		}
		made.file.Close()
	}
	return nil, err
}

// copyFile copies what there is, and leaves holes as they are.
func copyFile(to, from *os.File) error {
	info, err := from.Stat()
	if err != nil {
		return err
	}
	if err := to.Truncate(info.Size()); err != nil {
		return err
	}
	for at := int64(0); ; {
		start, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		if err == nil {
			at, err = unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE)
		}
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(to, start), io.NewSectionReader(from, start, at-start)); err != nil {
			return err
		}
	}
}

func serve() error {
	file := os.NewFile(listenerFile, "listener")
	listener, err := net.FileListener(file)
	if err != nil {
		return fmt.Errorf("it is started by podd: %w", err)
	}
	file.Close()
	unixListener, ok := listener.(*net.UnixListener)
	if !ok {
		return errors.New("it is started by podd, with a socket")
	}
	unix.CloseOnExec(directoryFile)
	s := &server{segments: map[uint64]*memfd{}, end: make(chan struct{})}
	failed := make(chan error, 1)
	go func() {
		for {
			conn, err := unixListener.AcceptUnix()
			if err != nil {
				failed <- err
				return
			}
			go s.serve(conn)
		}
	}()
	ticker := time.NewTicker(directoryPoll)
	defer ticker.Stop()
	for {
		select {
		case <-s.end:
			return nil
		case err := <-failed:
			return err
		case <-ticker.C:
			var st unix.Stat_t
			if err := unix.Fstat(directoryFile, &st); err != nil || st.Nlink == 0 {
				return err
			}
		}
	}
}

func (s *server) serve(conn *net.UnixConn) {
	defer conn.Close()
	b := make([]byte, requestSize+1)
	for {
		n, err := conn.Read(b)
		if err != nil || n == 0 {
			return
		}
		r, err := parseRequest(b[:n])
		if err != nil {
			return
		}
		fd, errno := s.do(r)
		if answer(conn, errno, fd) != nil {
			return
		}
		if r.op == opEnd {
			s.once.Do(func() { close(s.end) })
		}
	}
}

// do obeys; the descriptor is that of the segment, or negative.
func (s *server) do(r request) (fd int, errno unix.Errno) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.segments[r.id]
	switch r.op {
	case opWho, opEnd:
		return -1, 0
	case opCreate:
		if m != nil {
			return -1, unix.EEXIST
		}
		m, err := newMemfd(r.name, r.sealable)
		if err != nil {
			return -1, number(err)
		}
		s.segments[r.id] = m
		return int(m.file.Fd()), 0
	}
	if m == nil {
		return -1, unix.ENOENT
	}
	switch r.op {
	case opGet:
		now, err := m.unsealed()
		if err != nil {
			return -1, number(err)
		}
		if now != m {
			m.file.Close()
			s.segments[r.id] = now
		}
		return int(now.file.Fd()), 0
	case opDrop:
		delete(s.segments, r.id)
		return -1, number(m.file.Close())
	case opAllocate:
		for {
			// The pages are charged to the cgroup of who allocates them.
			err := unix.Fallocate(int(m.file.Fd()), unix.FALLOC_FL_KEEP_SIZE, r.offset, r.length)
			if err != unix.EINTR {
				return -1, number(err)
			}
		}
	}
	return -1, unix.EINVAL
}

func number(err error) unix.Errno {
	var errno unix.Errno
	if err == nil || errors.As(err, &errno) {
		return errno
	}
	return unix.EIO
}
