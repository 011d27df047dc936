package namespace

import (
	"os"
	"runtime"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters the namespaces before the Go runtime starts
)

// libcontainer, like every Go program that changes a thread's namespaces, does so
// on a locked thread that is to end with its goroutine. The one thread that the
// Go runtime can't end is the main one: it would stay in the namespaces of a pod
// for good, keep the pod's mounts from ever going away, and show them as
// /proc/self/mountinfo. A lock taken by an init function gives the main thread to
// the main goroutine, so no other ever runs there (see runtime.LockOSThread).
func init() { runtime.LockOSThread() }

// Init must be the first thing the program does. libcontainer starts the
// program anew, with the argument "init", as the first process of a container,
// and filterProgram does with another argument; for these Init does not return.
func Init() {
	if len(os.Args) > 1 && os.Args[1] == filterArg && os.Getenv(filterVariable) != "" {
		os.Exit(showFilter())
	}
	if len(os.Args) > 1 && os.Args[1] == "init" && os.Getenv("_LIBCONTAINER_INITPIPE") != "" {
		libcontainer.Init()
	}
}
