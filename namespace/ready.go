package namespace

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

// readyInterval is how often the lock is taken. The kernel's grace periods last
// longer, also on an idle machine.
const readyInterval = 3 * time.Millisecond

// ReadyCgroups makes the kernel ready to put a process into another cgroup, and
// keeps it so until ctx ends, when it returns.
//
// All such changes, in all hierarchies, take one lock, which forks read without
// writing to shared memory. So the first writer waits for an RCU grace period,
// 5 to 20 ms, a quarter of what the start of a container takes; others that
// come before one more has passed don't (cgroup_threadgroup_rwsem, kernel/rcu/sync.c).
// Putting this process where it is already takes the lock and changes nothing.
func ReadyCgroups(ctx context.Context) error {
	procs, err := ownProcs()
	if err != nil {
		return err
	}
	file, err := os.OpenFile(procs, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("preparing changes of cgroups: %w", err)
	}
	defer file.Close()
	tick := time.NewTicker(readyInterval)
	defer tick.Stop()
	for {
		if _, err := unix.Pwrite(int(file.Fd()), []byte("0"), 0); err != nil {
			return fmt.Errorf("preparing changes of cgroups: %s: %w", procs, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// ownProcs is the file that lists the processes of the cgroup that this one is
// in, in version 1 that of a hierarchy that every host of pods has.
func ownProcs() (string, error) {
	own, err := cgroups.ParseCgroupFile("/proc/self/cgroup")
	if err != nil {
		return "", fmt.Errorf("looking for podd's cgroup: %w", err)
	}
	hierarchy := ""
	if !cgroups.IsCgroup2UnifiedMode() {
		hierarchy = "freezer"
	}
	return filepath.Join(cgroupRoot, hierarchy, own[hierarchy], "cgroup.procs"), nil
}
