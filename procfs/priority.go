package procfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// lowPriority is a nice value (setpriority(2)) that leaves about a tenth of a processor
// that others want.
const lowPriority = 10

// Yield lowers the priority of a process's main thread, or of any thread by its number, 0
// being the calling one: for work that nobody waits for. It yields to who shares its
// session and cgroup.
func Yield(thread int) error {
	return os.NewSyscallError("setpriority", unix.Setpriority(unix.PRIO_PROCESS, thread, lowPriority))
}

// YieldSession does the same for the process that leads a session, and for the session.
func YieldSession(leader int) error {
	return errors.Join(Yield(leader), NiceSession(leader, lowPriority))
}

// NiceSession sets the nice value of the session that a process leads. The kernel shares
// processors out between sessions first, as it does between cgroups, and nice values of
// threads count only within one (sched(7), "The autogroup feature"). It does nothing where
// sessions are no groups: in a cgroup of the cpu controller, or in a kernel without them.
func NiceSession(leader, nice int) error {
	name := fmt.Sprintf("/proc/%d/autogroup", leader)
	err := os.WriteFile(name, []byte(strconv.Itoa(nice)), 0)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", leader)); err == nil {
			return nil
		}
	}
	if err != nil {
		return fmt.Errorf("setting the priority of a session: %w", err)
	}
	return nil
}
