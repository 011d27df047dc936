package lab

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

// process is a process for good: its number alone is given to another one
// after it has ended.
type process struct {
	PID int `json:"pid"`
	// StartTime is in clock ticks since the machine was started.
	StartTime uint64 `json:"startTime"`
}

// errGone means that a process has ended, though it may still be a zombie.
var errGone = errors.New("the process has ended")

// startTime returns when a process was started. The error wraps errGone when
// it has ended: some machines' first process reaps nothing, so a zombie, which
// this counts as ended, can stay for good.
func startTime(pid int) (uint64, error) {
	stat, err := procfs.ReadStat(pid)
	switch {
	case procfs.Gone(err), err == nil && stat.Ended():
		return 0, fmt.Errorf("process %d: %w", pid, errGone)
	case err != nil:
		return 0, fmt.Errorf("looking at process %d: %w", pid, err)
	}
	return stat.Start, nil
}

func (p process) alive() bool {
	if p.PID == 0 {
		return false
	}
	t, err := startTime(p.PID)
	return err == nil && t == p.StartTime
}

// open returns a descriptor that can only mean this process. The error wraps
// errGone when it has ended.
func (p process) open() (int, error) {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return -1, errGone
	}
	if err != nil {
		return -1, fmt.Errorf("opening process %d: %w", p.PID, err)
	}
	if !p.alive() { // looked at after the open: the number can't change hands now
		unix.Close(fd)
		return -1, errGone
	}
	return fd, nil
}

// signal does nothing when the process has ended.
func (p process) signal(s unix.Signal) error {
	fd, err := p.open()
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.PidfdSendSignal(fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("sending %v to process %d: %w", s, p.PID, err)
	}
	return nil
}

// wait returns when the process has ended.
func (p process) wait(ctx context.Context) error {
	fd, err := p.open()
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := procfs.WaitExit(ctx, fd); err != nil {
		return fmt.Errorf("waiting for the end of process %d: %w", p.PID, err)
	}
	return nil
}
