package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"podd/lab"
)

// upTimeout bounds making the lab, downTimeout taking it down.
const (
	upTimeout   = 2 * time.Minute
	downTimeout = time.Minute
)

// cleanUp removes what a run in dir has made, once its lab is down.
func cleanUp(dir string, down error) error {
	if errors.Is(down, lab.ErrUp) {
		fmt.Fprintln(os.Stderr, "bench:", down)
		down = nil
	}
	if err := unmountBeneath(dir); err != nil {
		return errors.Join(down, err)
	}
	return errors.Join(down, os.RemoveAll(dir))
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
