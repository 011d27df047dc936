package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// guardVariable makes a program a guard of the directory it names.
const guardVariable = "PODD_LAB_GUARD"

// guardTimeout bounds how long a guard takes to take a lab down.
const guardTimeout = 2 * time.Minute

// DirIn is where the lab of a guarded run in dir keeps state and logs.
func DirIn(dir string) string { return filepath.Join(dir, "lab") }

// StartGuard starts this program once more, to take down the lab of a run in dir
// and clean up when this process ends, be it by a panic, a timeout or a signal.
// dismiss makes it do so at once and returns what it complains about.
func StartGuard(dir string) (dismiss func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("starting the guard: %w", err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), guardVariable+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the terminal's signals are not for it
	life, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("starting the guard: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the guard: %w", err)
	}
	return func() error {
		err := errors.Join(life.Close(), cmd.Wait())
		if err != nil {
			err = fmt.Errorf("cleaning up: %w", err)
		}
		return err
	}, nil
}

// RunGuard is what a program that calls StartGuard begins with. In a guard it
// waits for the end of the process that started it, takes the run's lab down, and
// calls cleanUp, which is told how that went: down wraps ErrUp if there is a lab
// that is none of the run's, which was left alone. In any other process it does
// nothing, and guard is false.
func RunGuard(cleanUp func(dir string, down error) error) (guard bool, err error) {
	dir := os.Getenv(guardVariable)
	if dir == "" {
		return false, nil
	}
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return true, fmt.Errorf("waiting for the end of what is guarded: %w", err)
	}
	return true, cleanUp(dir, downIn(dir))
}

// downIn takes down the lab of a run in dir, if there is one.
func downIn(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), guardTimeout)
	defer cancel()
	switch l, err := Load(); {
	case errors.Is(err, ErrNone):
		return nil
	case err != nil:
		return err
	case l.Dir != DirIn(dir):
		return fmt.Errorf("%w: it is none of this run's and is left alone: %s", ErrUp, l.Dir)
	default:
		return l.Down(ctx)
	}
}
