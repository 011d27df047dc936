package procfs

import (
	"os"

	"golang.org/x/sys/unix"
)

// lowPriority is a nice value (setpriority(2)) that leaves about a tenth of a processor
// that others want.
const lowPriority = 10

// Yield lowers the priority of a process's main thread, or of any thread by its number, 0
// being the calling one: for work that nobody waits for.
func Yield(thread int) error {
	return os.NewSyscallError("setpriority", unix.Setpriority(unix.PRIO_PROCESS, thread, lowPriority))
}
