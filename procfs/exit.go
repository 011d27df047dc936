package procfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// WaitExit waits until the process of a pidfd has ended, though nobody may have reaped
// it. It returns ctx's error if that is done before. No thread is kept waiting, for the wait
// may be as long as a pod lives.
func WaitExit(ctx context.Context, pidfd int) error {
	// A descriptor of its own: its deadline is this caller's alone.
	fd, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("duplicating a pidfd: %w", err)
	}
	// The runtime's poller takes only what is not blocking.
	if err := unix.SetNonblock(fd, true); err != nil {
		return errors.Join(fmt.Errorf("setting up a pidfd: %w", err), unix.Close(fd))
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	stop := context.AfterFunc(ctx, func() {
		// The only error is that f is closed already.
		_ = f.SetReadDeadline(time.Unix(1, 0))
	})
	defer stop()
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	err = conn.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(poll, 0)
		return err == nil && n > 0
	})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return err
}
