package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"podd/lab"
)

// guardVariable makes this program a guard of the directory it names.
const guardVariable = "PODD_BENCH_GUARD"

// upTimeout bounds making the lab, downTimeout taking it down.
const (
	upTimeout   = 2 * time.Minute
	downTimeout = time.Minute
)

// labDir is where the lab of a run in dir keeps state and logs.
func labDir(dir string) string { return filepath.Join(dir, "lab") }

// startGuard starts a process that removes what a run has made when this one
// ends, be it by a panic or a signal. dismiss makes it do so at once and
// returns what it complains about.
func startGuard(dir string) (dismiss func() error, err error) {
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

// guard waits for the end of the process that started it and takes down what
// that has made.
func guard(dir string) error {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), downTimeout)
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	var errs []error
	switch l, err := lab.Load(); {
	case errors.Is(err, lab.ErrNone):
	case err != nil:
		errs = append(errs, err)
	case l.Dir != labDir(dir):
		log.Warn("a lab is up that is none of this run's; it is left alone", "directory", l.Dir)
	default:
		errs = append(errs, l.Down(ctx))
	}
	if err := unmountBeneath(dir); err != nil {
		return errors.Join(append(errs, err)...)
	}
	return errors.Join(append(errs, os.RemoveAll(dir))...)
}

// unmountBeneath unmounts everything in dir, the latest mounts first. It fails
// when anything is left: what is beneath a mount may be anybody's.
func unmountBeneath(dir string) error {
	beneath := func() ([]*mountinfo.Info, error) {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		if err != nil {
			return nil, fmt.Errorf("looking for mounts in %s: %w", dir, err)
		}
		return mounts, nil
	}
	mounts, err := beneath()
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounts) {
		err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmounting %s: %w", m.Mountpoint, err)
		}
	}
	if mounts, err = beneath(); err == nil && len(mounts) > 0 {
		err = fmt.Errorf("%s is still mounted", mounts[0].Mountpoint)
	}
	return err
}
