package checkpoint

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"podd/procfs"
)

const (
	// spawnLimit bounds how long a freeze is put off for the sake of programs
	// that are being started.
	spawnLimit = 500 * time.Millisecond
	// spawnPause is the first pause for them to get on, spawnPauseMost the longest.
	spawnPause     = 200 * time.Microsecond
	spawnPauseMost = 5 * time.Millisecond
)

// freezeBetweenSpawns freezes the pod at a moment when no program is being
// started by vfork(2), as shells, posix_spawn(3), Go and Python do it: the parent
// waits, where nothing can interrupt it, for its child to execute the program.
// CRIU would stop the child first, and then wait in vain for the parent. The
// moments are short, but a busy shell has many.
//
// When there is no such moment within spawnLimit the pod is left frozen, and
// CRIU has its try. since is when the freeze began that lasts.
func (d *Dump) freezeBetweenSpawns(ctx context.Context) (since time.Time, err error) {
	begin := time.Now()
	for pause := spawnPause; ; pause = min(2*pause, spawnPauseMost) {
		since = time.Now()
		if err := d.freeze(ctx); err != nil {
			return since, err
		}
		if d.options.FreezeCgroup == "" {
			return since, nil
		}
		pid, err := spawning(d.options.FreezeCgroup)
		if err != nil {
			return since, fmt.Errorf("looking for programs that are being started: %w", err)
		}
		if pid == 0 {
			return since, nil
		}
		if time.Since(begin) > spawnLimit {
			d.log.Debug("a process does not get to execute its program", "pid", pid)
			return since, nil
		}
		if err := d.options.Hooks.Thaw(); err != nil {
			return since, err
		}
		select {
		case <-ctx.Done():
			return since, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// spawning returns a process of the cgroup that shares its parent's memory, which
// means that it has not yet executed its own program; 0 if there is none.
func spawning(cgroup string) (int, error) {
	pids, err := procfs.CgroupProcesses(cgroup)
	if err != nil {
		return 0, err
	}
	shared, err := sharingMemory(pids)
	if err != nil {
		return 0, err
	}
	for pid, space := range shared {
		stat, err := procfs.ReadStat(pid)
		if procfs.Gone(err) {
			continue
		}
		if err != nil {
			return 0, err
		}
		// A zombie has no memory, as all others.
		if parent, member := shared[stat.Parent]; stat.State != 'Z' && member && parent == space {
			return pid, nil
		}
	}
	return 0, nil
}

// sharingMemory returns those of the processes that have an address space in common
// with another, each with a number for it. kcmp(2), which CRIU needs too, puts
// address spaces in an order: sorting takes less than reading who is whose parent.
func sharingMemory(pids []int) (map[int]int, error) {
	var failed error
	compare := func(a, b int) int {
		const kcmpVM = 1 // include/uapi/linux/kcmp.h
		result, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(a), uintptr(b), kcmpVM, 0, 0, 0)
		switch {
		case errno == 0 && result == 0:
			return 0
		case errno == 0 && result == 1:
			return -1
		case errno == 0 && result == 2, errno == unix.ESRCH: // one has ended
			return 1
		}
		failed = fmt.Errorf("comparing processes %d and %d: %w", a, b, errno)
		return 0
	}
	slices.SortFunc(pids, compare)
	shared := map[int]int{}
	for i := 1; i < len(pids); i++ {
		if compare(pids[i-1], pids[i]) != 0 {
			continue
		}
		space, known := shared[pids[i-1]]
		if !known {
			space = i
			shared[pids[i-1]] = space
		}
		shared[pids[i]] = space
	}
	return shared, failed
}
