package namespace

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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

// freezerPoll is how often the state of a version 1 freezer, which gives no
// notice, is read while it changes.
const freezerPoll = 50 * time.Microsecond

// Freeze stops every process of the pod and waits until they are. If ctx ends
// first they are let go again.
func (c *Container) Freeze(ctx context.Context) error {
	if err := c.RequestFreeze(); err != nil {
		return err
	}
	err := c.awaitFreezer(ctx, true)
	if err != nil {
		err = errors.Join(err, c.Thaw(context.WithoutCancel(ctx)))
	}
	return err
}

// RequestFreeze is Freeze without waiting, for processes that something else
// stops already, such as CRIU's ptrace: they stay stopped when it lets go.
func (c *Container) RequestFreeze() error { return c.setFreezer(true) }

// Thaw lets the pod's processes go on.
func (c *Container) Thaw(ctx context.Context) error {
	if err := c.setFreezer(false); err != nil {
		return err
	}
	return c.awaitFreezer(ctx, false)
}

func (c *Container) setFreezer(frozen bool) error {
	dir, file, value := c.freezer()
	if err := os.WriteFile(filepath.Join(dir, file), []byte(value[frozen]), 0); err != nil {
		return fmt.Errorf("telling the freezer %s: %w", value[frozen], err)
	}
	return nil
}

// freezer is the directory, the file and the values that freeze and thaw.
func (c *Container) freezer() (dir, file string, value map[bool]string) {
	if cgroups.IsCgroup2UnifiedMode() {
		return filepath.Join(cgroupRoot, c.paths.cgroup), "cgroup.freeze", map[bool]string{true: "1", false: "0"}
	}
	return filepath.Join(cgroupRoot, "freezer", c.paths.cgroup), "freezer.state", map[bool]string{true: "FROZEN", false: "THAWED"}
}

// awaitFreezer waits until the kernel reports the state.
func (c *Container) awaitFreezer(ctx context.Context, frozen bool) error {
	dir, file, value := c.freezer()
	if !cgroups.IsCgroup2UnifiedMode() {
		for {
			// Reading the state makes the kernel look at the processes again.
			state, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				return fmt.Errorf("reading the freezer's state: %w", err)
			}
			if strings.TrimSpace(string(state)) == value[frozen] {
				return nil
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("waiting for the freezer (%s): %w", strings.TrimSpace(string(state)), ctx.Err())
			case <-time.After(freezerPoll):
			}
		}
	}
	events, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		return fmt.Errorf("watching the freezer: %w", err)
	}
	defer events.Close()
	want := "frozen " + value[frozen]
	for {
		state := make([]byte, 256)
		n, err := events.ReadAt(state, 0)
		if n == 0 && err != nil {
			return fmt.Errorf("reading the freezer's state: %w", err)
		}
		for line := range strings.Lines(string(state[:n])) {
			if strings.TrimSpace(line) == want {
				return nil
			}
		}
		// The kernel raises POLLPRI when the file changes (cgroup-v2.rst); the
		// limit is only there to notice ctx.
		poll := []unix.PollFd{{Fd: int32(events.Fd()), Events: unix.POLLPRI}}
		if _, err := unix.Poll(poll, 100); err != nil && err != unix.EINTR {
			return fmt.Errorf("watching the freezer: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("waiting for the freezer: %w", err)
		}
	}
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
