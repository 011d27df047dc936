package namespace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"podd/pod"
	"podd/procfs"
)

// Start makes the namespaces of a prepared container and starts its init, which
// starts the main command. When it returns the init runs; a command that can't
// be executed ends with 126 or 127 at once, and says why in the log. If Start
// fails there may be processes: Release or Destroy ends them.
//
// made, which may be nil, is called when the init exists and is about to be let
// go, for what can be done meanwhile.
func (c *Container) Start(ctx context.Context, made func()) error {
	if err := c.start(ctx, made); err != nil {
		return fmt.Errorf("starting container %s: %w", c.id, err)
	}
	return nil
}

func (c *Container) start(ctx context.Context, made func()) error {
	config, err := c.config()
	if err != nil {
		return err
	}
	if !config.NoNewPrivileges {
		// The init loads the system call filter by it, and drops it at once.
		more := append(slices.Clone(capabilities), "CAP_SYS_ADMIN")
		config.Capabilities = &configs.Capabilities{Bounding: more, Permitted: more, Effective: more}
	}
	isReady, ready, err := os.Pipe()
	if err != nil {
		return err
	}
	defer isReady.Close()
	defer ready.Close()
	filter, err := filterPipe()
	if err != nil {
		return err
	}
	defer filter.Close()
	init, err := c.initProcess(ready, filter)
	if err != nil {
		return err
	}
	container, err := libcontainer.Create(c.runtime.opts.RunDir+"/libcontainer", c.id, config)
	if err != nil {
		return err
	}
	// From here on Destroy finds everything by the container's ID.
	if err := container.Start(init); err != nil {
		return err
	}
	pid, err := init.Pid()
	if err != nil {
		return err
	}
	// The record is written before the init is let go, so a crash can't leave a
	// running pod that nobody knows.
	durable, err := c.adopt(pid)
	if err != nil {
		return err
	}
	var syncing errgroup.Group
	syncing.Go(durable)
	if made != nil {
		made()
	}
	err = container.Exec()
	if err == nil {
		err = awaitEOF(ctx, ready, isReady)
	}
	return errors.Join(err, syncing.Wait())
}

// awaitEOF waits until nobody has the writing end of a pipe any more.
func awaitEOF(ctx context.Context, w, r *os.File) error {
	if err := w.Close(); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() {
		// The only error is that r is closed already.
		_ = r.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	if _, err := r.Read(make([]byte, 1)); err != io.EOF {
		return errors.Join(err, ctx.Err())
	}
	return nil
}

// Adopt makes a restored init, which pid names on this host, the container's:
// from then on it is like one that Start made.
func (c *Container) Adopt(pid int) error {
	durable, err := c.adopt(pid)
	if err == nil {
		err = durable()
	}
	if err != nil {
		return fmt.Errorf("adopting process %d as container %s: %w", pid, c.id, err)
	}
	return nil
}

func (c *Container) adopt(pid int) (durable func() error, err error) {
	p, err := identify(pid)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.record.Process = p
	// A descriptor of an earlier init, of a restore that came to nothing. It is
	// closed when nobody uses it any more.
	c.pidfd = nil
	return c.writeRecord()
}

// open returns a pidfd of the init, nil if it is not there any more.
func (c *Container) open() (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd != nil {
		return c.pidfd, nil
	}
	if c.record.Process == nil {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(c.record.Process.PID, 0)
	if err == unix.ESRCH {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening the init of %s: %w", c.id, err)
	}
	f := os.NewFile(uintptr(fd), "pidfd of "+c.id)
	// Looked at after opening: if it is the same process now, it was then.
	same, err := c.record.Process.exists()
	if err != nil || !same {
		f.Close()
		return nil, err
	}
	c.pidfd = f
	return f, nil
}

// PID is the process ID of the pod's init on this host. ok is false if it has
// ended or there never was one.
func (c *Container) PID() (pid int, ok bool) {
	f, err := c.open()
	if err != nil || f == nil || ended(f) {
		return 0, false
	}
	return c.record.Process.PID, true
}

// ended reports whether the process has exited, even if nobody has reaped it.
func ended(pidfd *os.File) bool {
	poll := []unix.PollFd{{Fd: int32(pidfd.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n > 0
}

// Signal sends a signal to the pod: the init passes it on to the main command,
// except SIGKILL, which ends the pod. The error wraps pod.ErrPhase if it does
// not run.
func (c *Container) Signal(signal unix.Signal) error {
	f, err := c.open()
	if err != nil {
		return err
	}
	if f == nil {
		return fmt.Errorf("signalling container %s: %w: not running", c.id, pod.ErrPhase)
	}
	err = unix.PidfdSendSignal(int(f.Fd()), signal, nil, 0)
	if err == unix.ESRCH {
		return fmt.Errorf("signalling container %s: %w: not running", c.id, pod.ErrPhase)
	}
	if err != nil {
		return fmt.Errorf("signalling container %s: %w", c.id, err)
	}
	return nil
}

// ExitKilled is the exit status of a pod whose init was killed, 128+SIGKILL, or
// whose exit status was not to be had.
const ExitKilled = 128 + int(unix.SIGKILL)

// Wait waits until the pod has ended and returns the exit status of its main
// command: 0 to 255, 128+n for signal n. Any number of callers may wait, of
// whatever process started the pod. The error wraps pod.ErrPhase if it was never
// started.
func (c *Container) Wait(ctx context.Context) (int, error) {
	f, err := c.open()
	if err != nil {
		return 0, err
	}
	if f != nil {
		if err := procfs.WaitExit(ctx, int(f.Fd())); err != nil {
			return 0, fmt.Errorf("waiting for container %s: %w", c.id, err)
		}
		// The init is our child unless podd was restarted; only then is this needed.
		err := unix.Waitid(unix.P_PIDFD, int(f.Fd()), nil, unix.WEXITED|unix.WNOHANG, nil)
		if err != nil && err != unix.ECHILD {
			return 0, fmt.Errorf("reaping the init of %s: %w", c.id, err)
		}
	} else if c.record.Process == nil {
		return 0, fmt.Errorf("waiting for container %s: %w: never started", c.id, pod.ErrPhase)
	}
	status, err := c.exitStatus()
	if err != nil {
		// The pod's root may have spoilt it, which must not keep the pod from having ended.
		c.runtime.opts.Log.Warn("the exit status is unreadable", "pod", c.Name(), "error", err)
		return ExitKilled, nil
	}
	return status, nil
}

// Exited returns the exit status that the main command left when it ended, like
// Wait. ok is false if it has left none: it runs, never ran, or the init was
// killed.
func (c *Container) Exited() (status int, ok bool, err error) {
	if _, running := c.PID(); running {
		return 0, false, nil
	}
	return c.recordedStatus()
}

// exitStatus is the recorded status, or ExitKilled if there is none.
func (c *Container) exitStatus() (int, error) {
	status, ok, err := c.recordedStatus()
	if err == nil && !ok {
		return ExitKilled, nil
	}
	return status, err
}

// recordedStatus reads what the init left behind. It leaves nothing when it is
// killed itself.
func (c *Container) recordedStatus() (status int, ok bool, err error) {
	upper, err := openDir(c.paths.upper)
	if err != nil {
		return 0, false, fmt.Errorf("reading the exit status: %w", err)
	}
	defer upper.Close()
	f, err := openRegular(upper, initDir+"/exit", false)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, fmt.Errorf("reading the exit status: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 8))
	if err != nil {
		return 0, false, fmt.Errorf("reading the exit status: %w", err)
	}
	code, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 8)
	if err != nil {
		return 0, false, fmt.Errorf("reading the exit status: %w", err)
	}
	return int(code), true, nil
}
