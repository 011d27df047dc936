package procfs

import (
	"context"
	"errors"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWaitExit waits for a program that ends with its input, and that nobody has reaped yet.
func TestWaitExit(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), "cat")
	input, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := WaitExit(ctx, pidfd); !errors.Is(err, context.Canceled) {
		t.Errorf("before its end: %v", err)
	}
	input.Close()
	if err := WaitExit(t.Context(), pidfd); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
