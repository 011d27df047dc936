package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"podd/procfs"
)

// Freezer freezes all processes of one cgroup: with cgroup.freeze in version
// 2, with freezer.state in version 1. While they are frozen it keeps them on one
// processor, where there are cpusets.
type Freezer struct {
	dir string
	v1  bool
	// idle is from when the Freezer was made.
	idle idleTimes
}

func (f *Freezer) cpuset() cpuset { return cpusetOf(f.dir, f.v1) }

// NewFreezer returns the freezer of the cgroup whose directory is dir: in
// version 1 the one below the freezer controller.
func NewFreezer(dir string) (*Freezer, error) {
	for _, v1 := range []bool{false, true} {
		f := &Freezer{dir: dir, v1: v1}
		_, err := os.Stat(f.control())
		if err == nil {
			f.idle, err = readIdleTimes()
			return f, err
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("looking for the freezer of %s: %w", dir, err)
		}
	}
	return nil, fmt.Errorf("cgroup %s has no freezer: it must be a cgroup v2 directory or one of the v1 freezer controller", dir)
}

// Dir returns the cgroup's directory, which CRIU wants to know
// (DumpOptions.FreezeCgroup).
func (f *Freezer) Dir() string { return f.dir }

func (f *Freezer) control() string {
	if f.v1 {
		return filepath.Join(f.dir, "freezer.state")
	}
	return filepath.Join(f.dir, "cgroup.freeze")
}

// Freeze freezes the processes and waits until all of them are, or ctx is
// done; then the cgroup is thawed again. Freezing what is frozen does nothing.
func (f *Freezer) Freeze(ctx context.Context) error {
	word := "1"
	if f.v1 {
		word = "FROZEN"
	}
	// The kernel needs a moment (each task must reach a point where it can
	// stop), and a file without notification in version 1: poll, first
	// often, for it is usually over in less than a millisecond.
	wait := 50 * time.Microsecond
	for {
		// Version 1 misses a task that forks at the wrong moment, unless
		// it is told again.
		if err := os.WriteFile(f.control(), []byte(word), 0); err != nil {
			return fmt.Errorf("freezing cgroup %s: %w", f.dir, err)
		}
		frozen, err := f.Frozen()
		if err != nil {
			return err
		}
		if frozen {
			return f.cpuset().gather(f.idle)
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("freezing cgroup %s: %w", f.dir, context.Cause(ctx)), f.Thaw())
		case <-time.After(wait):
		}
		wait = min(2*wait, 10*time.Millisecond)
	}
}

// Thaw lets the processes run. Thawing what is not frozen does nothing.
func (f *Freezer) Thaw() error {
	spreadErr := f.cpuset().spread()
	word := "0"
	if f.v1 {
		word = "THAWED"
	}
	if err := os.WriteFile(f.control(), []byte(word), 0); err != nil {
		return errors.Join(fmt.Errorf("thawing cgroup %s: %w", f.dir, err), spreadErr)
	}
	return spreadErr
}

// Frozen reports whether all processes of the cgroup are frozen.
func (f *Freezer) Frozen() (bool, error) {
	name := f.control()
	if !f.v1 {
		name = filepath.Join(f.dir, "cgroup.events")
	}
	b, err := os.ReadFile(name)
	if err != nil {
		return false, fmt.Errorf("reading the freezer of %s: %w", f.dir, err)
	}
	if f.v1 {
		return strings.TrimSpace(string(b)) == "FROZEN", nil
	}
	for line := range strings.Lines(string(b)) {
		if strings.TrimSpace(line) == "frozen 1" {
			return true, nil
		}
	}
	return false, nil
}

// stoppedInRefrigerator reports whether CRIU must not seize the processes of the
// pod with this init while they are frozen: in version 1 of cgroups a frozen
// process that had been stopped (SIGSTOP, or Ctrl-Z in a shell) can't be made a
// traced one, and CRIU would wait for it until it is thawed
// (wait_on_bit in ptrace_attach, kernel/ptrace.c).
func stoppedInRefrigerator(init int, cgroup string) (bool, error) {
	freezer, err := NewFreezer(cgroup)
	if err != nil || !freezer.v1 {
		return false, err
	}
	processes, err := procfs.PodProcesses(init)
	if err != nil {
		return false, fmt.Errorf("looking for stopped processes: %w", err)
	}
	for _, stat := range processes {
		if stat.State == 'T' {
			return true, nil
		}
	}
	return false, nil
}
