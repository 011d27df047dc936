package checkpoint

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"podd/netconn"
)

// ErrNotLazy means that memory can't be filled in after a restore on this host.
var ErrNotLazy = errors.New("memory can't be filled in after a restore")

// CanRestoreLazily reports whether RestoreOptions.Lazy is possible here; if not,
// the error wraps ErrNotLazy. CRIU is asked once.
func (e *Engine) CanRestoreLazily() error { return e.canRestoreLazily() }

func (e *Engine) tryLazy() error {
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	features, err := e.checkFeatures(ctx)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotLazy, err)
	}
	if !features.GetLazyPages() {
		return fmt.Errorf("%w: the kernel lacks userfaultfd with events of fork, remap, remove and unmap (CONFIG_USERFAULTFD)", ErrNotLazy)
	}
	return nil
}

// lazySocket is where CRIU looks in its work directory for somebody who fills
// memory in (criu/uffd.c).
const lazySocket = "lazy-pages.socket"

// lazyPages receives the userfaultfds of a restore. CRIU connects once, before
// there are processes; each of them then says its number in the pod, as an i32,
// and sends its descriptor with one more byte. A dead process says its number
// negative and sends nothing. When the processes are about to run CRIU says that
// it is done, and fails if nobody is there to hear it.
type lazyPages struct {
	give func(pid int, uffd *os.File) error
	name string
	l    *net.UnixListener
	// done is closed when the last descriptor was passed on, or with err.
	done chan struct{}
	err  error
	// refused is what give failed with.
	refused error
	// serving is the goroutine that receives.
	serving sync.WaitGroup

	mu     sync.Mutex
	conn   *net.UnixConn
	closed bool
}

// listenLazy makes the socket in the work directory, so that CRIU can be told to
// restore.
func listenLazy(work *os.File, give func(pid int, uffd *os.File) error) (*lazyPages, error) {
	p := &lazyPages{give: give, name: filepath.Join(work.Name(), lazySocket), done: make(chan struct{})}
	if err := os.Remove(p.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("removing an old socket: %w", err)
	}
	var err error
	if p.l, err = netconn.ListenIn("unix", work, lazySocket); err != nil {
		return nil, fmt.Errorf("listening for CRIU's userfaultfds: %w", err)
	}
	return p, nil
}

// start receives the descriptors of so many processes.
func (p *lazyPages) start(processes int) {
	p.serving.Go(func() {
		conn, err := p.accept()
		if err == nil {
			err = p.receive(conn, processes)
		}
		if err != nil {
			p.err = fmt.Errorf("receiving userfaultfds from CRIU: %w", err)
			close(p.done)
			// CRIU must not wait for what nobody takes.
			p.hangUp()
			return
		}
		close(p.done)
		// CRIU's last word, and then nothing.
		_, _ = io.Copy(io.Discard, conn)
	})
}

func (p *lazyPages) accept() (*net.UnixConn, error) {
	conn, err := p.l.AcceptUnix()
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		conn.Close()
		return nil, net.ErrClosed
	}
	p.conn = conn
	return conn, nil
}

func (p *lazyPages) receive(conn *net.UnixConn, processes int) error {
	for range processes {
		pid, uffd, err := receiveUserfault(conn)
		if err != nil {
			return err
		}
		if uffd == nil {
			continue
		}
		if err := p.give(pid, uffd); err != nil {
			p.refused = fmt.Errorf("passing on the userfaultfd of process %d: %w", pid, err)
			return p.refused
		}
	}
	return nil
}

// receiveUserfault reads what one process sends. uffd is nil for a dead one.
func receiveUserfault(conn *net.UnixConn) (pid int, uffd *os.File, err error) {
	var number [4]byte
	if _, err := io.ReadFull(conn, number[:]); err != nil {
		return 0, nil, noEOF(err)
	}
	if pid = int(int32(binary.NativeEndian.Uint32(number[:]))); pid < 0 {
		return -pid, nil, nil
	}
	oob := make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := conn.ReadMsgUnix(number[:1], oob)
	if err == nil && n == 0 {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return 0, nil, err
	}
	if uffd, err = netconn.PassedFile(oob[:oobn], "userfaultfd"); err == nil && uffd == nil {
		err = fmt.Errorf("process %d sent no descriptor", pid)
	}
	return pid, uffd, err
}

// wait returns when all descriptors were passed on.
func (p *lazyPages) wait(ctx context.Context, criu <-chan struct{}) error {
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-criu:
		return errWorkerGone
	}
}

// hangUp closes the connection, and keeps another from being made.
func (p *lazyPages) hangUp() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.conn != nil {
		p.conn.Close()
	}
}

// close ends it when CRIU has ended or was not told to restore. It returns what
// the receiver of the descriptors failed with, if that is what the restore failed
// for.
func (p *lazyPages) close() (refused, err error) {
	p.hangUp()
	p.l.Close()
	p.serving.Wait()
	if err = os.Remove(p.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return p.refused, fmt.Errorf("removing CRIU's socket: %w", err)
	}
	return p.refused, nil
}
