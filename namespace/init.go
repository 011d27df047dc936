package namespace

import (
	"os"
	"runtime"

	_ "containerinit" // is the first process of a pod, when libcontainer starts this program as one
)

// libcontainer, like every Go program that changes a thread's namespaces, does so
// on a locked thread that is to end with its goroutine. The one thread that the
// Go runtime can't end is the main one: it would stay in the namespaces of a pod
// for good, keep the pod's mounts from ever going away, and show them as
// /proc/self/mountinfo. A lock taken by an init function gives the main thread to
// the main goroutine, so no other ever runs there (see runtime.LockOSThread).
func init() { runtime.LockOSThread() }

// Init must be the first thing the program does: filterProgram starts the
// program anew, and then Init does not return.
func Init() {
	if len(os.Args) > 1 && os.Args[1] == filterArg && os.Getenv(filterVariable) != "" {
		os.Exit(showFilter())
	}
}
