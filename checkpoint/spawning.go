package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
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
	list, err := os.ReadFile(filepath.Join(cgroup, "cgroup.procs"))
	if err != nil {
		return 0, err
	}
	members := map[int]bool{}
	for word := range strings.FieldsSeq(string(list)) {
		pid, err := strconv.Atoi(word)
		if err != nil {
			return 0, fmt.Errorf("malformed list of processes: %w", err)
		}
		members[pid] = true
	}
	for pid := range members {
		stat, err := readStat(pid)
		if gone(err) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if stat.state == 'Z' || !members[stat.parent] {
			continue // it has no memory, or its parent is none of the pod's
		}
		shared, err := sharesMemory(pid, stat.parent)
		if err != nil {
			return 0, err
		}
		if shared {
			return pid, nil
		}
	}
	return 0, nil
}

// sharesMemory reports whether two processes have one address space, by kcmp(2),
// which CRIU needs too.
func sharesMemory(pid, other int) (bool, error) {
	const kcmpVM = 1 // include/uapi/linux/kcmp.h
	result, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(pid), uintptr(other), kcmpVM, 0, 0, 0)
	switch {
	case errno == 0:
		return result == 0, nil
	case errors.Is(errno, unix.ESRCH): // one has ended
		return false, nil
	}
	return false, fmt.Errorf("comparing processes %d and %d: %w", pid, other, errno)
}
