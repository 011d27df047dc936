package pager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"podd/netconn"
)

// errDead is why nobody answers.
var errDead = errors.New("the pager is dead")

// ensure starts a pager unless there is one.
func (p *Pager) ensure(ctx context.Context, m meta) error {
	fd, err := m.Pager.open()
	if err == nil {
		unix.Close(fd)
		return nil
	}
	if !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	return p.spawn(ctx)
}

// spawn starts a pager in place of the last one and waits until it serves.
func (p *Pager) spawn(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(p.o.Dir, logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("starting the pager: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(p.o.Executable)
	cmd.Args = arguments(p.o.Dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it outlives podd, and its terminal
	p.sparing.Lock()
	variable, files := p.spare.handOver()
	cmd.Env, cmd.ExtraFiles = append(os.Environ(), variable), files
	err = cmd.Start()
	p.sparing.Unlock()
	if err != nil {
		return fmt.Errorf("starting the pager: %w", err)
	}
	ended := make(chan error, 1)
	// Whoever is a child when podd ends is somebody else's to reap.
	go func() { ended <- cmd.Wait() }()
	for {
		m, err := p.remembered()
		if err == nil && m.Pager.PID == cmd.Process.Pid {
			if _, err = p.call(ctx, request{Op: "status"}, nil); err == nil {
				return nil
			}
		}
		select {
		case err := <-ended:
			if m, merr := p.remembered(); merr == nil && (m.Final != nil || m.Lost != "") {
				return nil
			}
			if _, err := p.call(ctx, request{Op: "status"}, nil); err == nil {
				return nil // one that was being started as podd died
			}
			return fmt.Errorf("the pager ended at once: %w: %s", err, p.lastWords())
		case <-ctx.Done():
			cmd.Process.Kill() // it is reaped above
			return fmt.Errorf("starting the pager: %w", context.Cause(ctx))
		case <-time.After(retryCall):
		}
	}
}

// lastWords is the last line of the log.
func (p *Pager) lastWords() string {
	b, err := os.ReadFile(filepath.Join(p.o.Dir, logName))
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimSpace(string(b)), "\n")
	return lines[len(lines)-1]
}

// watchDeath returns a context that ends with errDead when the process does.
func (p *Pager) watchDeath(pager process) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(p.ctx)
	fd, err := pager.open()
	if err != nil {
		cancel(errDead)
		return ctx, func() {}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		p.o.Log.Error("following the pager", "error", err) // its silence tells, too
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	p.wg.Go(func() {
		raw, err := file.SyscallConn()
		if err != nil {
			return
		}
		// The runtime waits until it is readable, which is when it is dead.
		err = raw.Read(func(fd uintptr) bool {
			n, _ := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
			return n > 0
		})
		if err == nil {
			cancel(errDead)
		}
	})
	return ctx, func() {
		file.Close()
		cancel(nil)
	}
}

// ask asks the pager, and again when it is being replaced, until ctx ends.
func (p *Pager) ask(ctx context.Context, r request, file *os.File) (Status, error) {
	for {
		s, err := p.call(ctx, r, file)
		var refused *refusedError
		if err == nil || errors.As(err, &refused) {
			return s, err
		}
		select {
		case <-p.done:
			if err := p.Wait(ctx); err != nil {
				return p.Status(), err
			}
			return p.Status(), nil // all is filled
		case <-ctx.Done():
			return s, fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(retryCall):
		}
	}
}

// refusedError is what the pager says to a request.
type refusedError struct{ text string }

func (e *refusedError) Error() string { return e.text }

// Is makes what is to be waited for errNotYet again.
func (e *refusedError) Is(target error) bool {
	return target == errNotYet && strings.HasPrefix(e.text, errNotYet.Error())
}

// dial connects to the control socket.
func (p *Pager) dial(ctx context.Context) (*net.UnixConn, error) {
	dir, err := os.Open(p.o.Dir)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return netconn.DialIn(ctx, "unixpacket", dir, controlName)
}

// stream sends what is attached without waiting for an answer.
func (p *Pager) stream(ctx context.Context, pid int, uffd *os.File) error {
	p.streaming.Lock()
	defer p.streaming.Unlock()
	if p.streamConn == nil {
		conn, err := p.dial(ctx)
		if err != nil {
			return err
		}
		if _, err := conn.Write([]byte(`{"op":"stream"}`)); err != nil {
			conn.Close()
			return err
		}
		p.streamConn = conn
	}
	b, err := json.Marshal(request{Op: "attach", PID: pid})
	if err != nil {
		return err
	}
	if err := p.streamConn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return err
	}
	if err := send(p.streamConn, b, uffd); err != nil {
		p.streamConn.Close()
		p.streamConn = nil
		return err
	}
	return nil
}

// flush waits until the pager has taken all that was streamed to it. If it died
// meanwhile it does not know of some.
func (p *Pager) flush() error {
	p.streaming.Lock()
	defer p.streaming.Unlock()
	if p.streamConn == nil {
		return nil
	}
	conn := p.streamConn
	p.streamConn = nil
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(callTimeout)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(`{"op":"flush"}`)); err != nil {
		return err
	}
	_, err := heed(conn)
	return err
}

// call asks the pager once.
func (p *Pager) call(ctx context.Context, r request, file *os.File) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := p.dial(ctx)
	if err != nil {
		return Status{}, fmt.Errorf("asking the pager: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	b, err := json.Marshal(r)
	if err != nil {
		return Status{}, fmt.Errorf("asking the pager: %w", err)
	}
	if err := send(conn, b, file); err != nil {
		return Status{}, fmt.Errorf("asking the pager: %w", err)
	}
	return heed(conn)
}

// heed reads an answer.
func heed(conn *net.UnixConn) (Status, error) {
	b := make([]byte, maxMessage)
	n, err := conn.Read(b)
	if err != nil {
		return Status{}, fmt.Errorf("asking the pager: %w", err)
	}
	var a answer
	if err := json.Unmarshal(b[:n], &a); err != nil {
		return Status{}, fmt.Errorf("asking the pager: %w", err)
	}
	if a.Error != "" {
		return a.Status, &refusedError{a.Error}
	}
	return a.Status, nil
}

// send sends a message, with a descriptor if there is a file. The file's mode is
// left alone: it is shared with who has the descriptor.
func send(conn *net.UnixConn, b []byte, file *os.File) error {
	if file == nil {
		_, err := conn.Write(b)
		return err
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var sendErr error
	err = raw.Control(func(fd uintptr) {
		_, _, sendErr = conn.WriteMsgUnix(b, unix.UnixRights(int(fd)), nil)
	})
	return errors.Join(err, sendErr)
}
