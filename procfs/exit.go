package procfs

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// WaitExit waits until the process of a pidfd has ended, though nobody may have reaped
// it. It returns ctx's error if that is done before.
func WaitExit(ctx context.Context, pidfd int) error {
	const look = 100 // ms, for ctx
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Poll(fds, look)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return os.NewSyscallError("poll", err)
		}
		if n > 0 {
			return nil
		}
	}
}
