package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // lets the manager set device rules
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"
)

// cpuPeriod is the period of the CPU limit in microseconds, the kernel's default.
const cpuPeriod = 100_000

func (c *Container) cgroupConfig() *cgroups.Cgroup {
	spec := c.record.Config.Spec
	resources := &cgroups.Resources{Devices: deviceRules(), Memory: spec.MemoryBytes}
	if spec.PIDs > 0 {
		resources.PidsLimit = &spec.PIDs
	}
	if spec.MilliCPUs > 0 {
		resources.CpuPeriod = cpuPeriod
		resources.CpuQuota = spec.MilliCPUs * cpuPeriod / 1000
	}
	return &cgroups.Cgroup{Path: c.paths.cgroup, Resources: resources}
}

// cgroup is libcontainer's view of the pod's cgroup, which need not exist.
func (c *Container) cgroup() (cgroups.Manager, error) {
	m, err := manager.New(c.cgroupConfig())
	if err != nil {
		return nil, fmt.Errorf("cgroup %s: %w", c.paths.cgroup, err)
	}
	return m, nil
}

// JoinCgroup makes the pod's cgroup with its limits, if it is not there, and
// puts a process into it: CRIU's, whose children, the restored processes, are
// then born there.
func (c *Container) JoinCgroup(pid int) error {
	m, err := c.cgroup()
	if err != nil {
		return err
	}
	if err := m.Apply(pid); err != nil {
		return fmt.Errorf("putting process %d into cgroup %s: %w", pid, c.paths.cgroup, err)
	}
	if err := m.Set(c.cgroupConfig().Resources); err != nil {
		return fmt.Errorf("limiting cgroup %s: %w", c.paths.cgroup, err)
	}
	return nil
}

// FreezerDir is the directory of the cgroup that freezes the pod: in version 1
// the freezer's, in version 2 the pod's only one.
func (c *Container) FreezerDir() string {
	if cgroups.IsCgroup2UnifiedMode() {
		return filepath.Join(cgroupRoot, c.paths.cgroup)
	}
	return filepath.Join(cgroupRoot, "freezer", c.paths.cgroup)
}

// thaw lets frozen processes go on, if there are any.
func (c *Container) thaw() error {
	file, value := "freezer.state", "THAWED"
	if cgroups.IsCgroup2UnifiedMode() {
		file, value = "cgroup.freeze", "0"
	}
	err := os.WriteFile(filepath.Join(c.FreezerDir(), file), []byte(value), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("thawing the pod: %w", err)
	}
	return nil
}

// cgroupRoot is where both versions of the hierarchy are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// cgroupDirs are the directories that a cgroup has: one for each controller in
// version 1.
func cgroupDirs(path string) []string {
	if cgroups.IsCgroup2UnifiedMode() {
		return []string{filepath.Join(cgroupRoot, path)}
	}
	dirs, err := filepath.Glob(filepath.Join(cgroupRoot, "*", path))
	if err != nil { // a malformed pattern; the root has no special characters
		return nil
	}
	return dirs
}

// removeCgroup kills what is in the pod's cgroup and removes it, its children
// first.
func (c *Container) removeCgroup(ctx context.Context) error {
	m, err := c.cgroup()
	if err != nil {
		return err
	}
	if err := killAll(ctx, m); err != nil {
		return err
	}
	if err := m.Destroy(); err != nil {
		return fmt.Errorf("removing cgroup %s: %w", c.paths.cgroup, err)
	}
	return nil
}

// killPoll is how often the processes of a cgroup are counted while they die.
const killPoll = 2 * time.Millisecond

// killAll kills every process in a cgroup and waits until none is left. It is
// for what a crash left behind: a pod's processes die with its init.
func killAll(ctx context.Context, m cgroups.Manager) error {
	for {
		pids, err := m.GetAllPids()
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("listing the processes of a cgroup: %w", err)
		}
		if len(pids) == 0 {
			return nil
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return fmt.Errorf("killing process %d: %w", pid, err)
			}
		}
		// A frozen process dies when it is thawed.
		if err := m.Freeze(cgroups.Thawed); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("thawing a cgroup: %w", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d processes to die: %w", len(pids), ctx.Err())
		case <-time.After(killPoll):
		}
	}
}
