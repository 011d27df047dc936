package cli

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	poddv1 "podd/api/podd/v1"
)

// fileOf returns the file behind a stream, nil when there is none.
func fileOf(stream any) *os.File {
	f, _ := stream.(*os.File)
	return f
}

// isTerminal reports whether a stream is a terminal.
func isTerminal(stream any) bool {
	f := fileOf(stream)
	return f != nil && term.IsTerminal(int(f.Fd()))
}

// windowSize is the size of the terminal that output goes to; nil when it goes
// elsewhere.
func windowSize(stream any) *poddv1.WindowSize {
	f := fileOf(stream)
	if f == nil {
		return nil
	}
	columns, rows, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return nil
	}
	return &poddv1.WindowSize{Rows: uint32(rows), Columns: uint32(columns)}
}

// rawTerminal passes every key on as it is pressed, without echo, until
// restore is called. Restoring what is no terminal does nothing.
func rawTerminal(stream any) (restore func(), err error) {
	if !isTerminal(stream) {
		return func() {}, nil
	}
	fd := int(fileOf(stream).Fd())
	state, err := term.MakeRaw(fd)
	if err != nil {
		return nil, fmt.Errorf("setting the terminal to raw mode: %w", err)
	}
	return func() { _ = term.Restore(fd, state) }, nil
}

// stoppableReader reads a stream such that a read that waits for input can be
// ended from outside. Closing a terminal does not do that, and making it
// non-blocking would change it for the shell too: so wait with poll.
type stoppableReader struct {
	from          io.Reader
	file          *os.File // nil: from is no file, and its reads just end
	wake, stopped *os.File
}

func newStoppableReader(from io.Reader) (*stoppableReader, error) {
	r := &stoppableReader{from: from, file: fileOf(from)}
	if r.file == nil {
		return r, nil
	}
	var err error
	if r.stopped, r.wake, err = os.Pipe(); err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	return r, nil
}

func (r *stoppableReader) Read(b []byte) (int, error) {
	if r.file == nil {
		return r.from.Read(b)
	}
	ready := []unix.PollFd{
		{Fd: int32(r.file.Fd()), Events: unix.POLLIN},
		{Fd: int32(r.stopped.Fd()), Events: unix.POLLIN},
	}
	for {
		_, err := unix.Poll(ready, -1)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, os.NewSyscallError("poll", err)
		case ready[1].Revents != 0:
			return 0, io.EOF
		}
		n, err := r.file.Read(b)
		if errors.Is(err, unix.EIO) {
			err = io.EOF // the terminal is gone
		}
		return n, err
	}
}

// stop ends a waiting Read and all further ones.
func (r *stoppableReader) stop() {
	if r.wake != nil {
		r.wake.Close()
	}
}

// close frees what the reader holds, after the last Read.
func (r *stoppableReader) close() {
	if r.stopped != nil {
		r.stopped.Close()
	}
}
