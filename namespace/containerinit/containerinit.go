// Package containerinit becomes the first process of a pod before most of podd
// is initialized. libcontainer starts podd itself, anew, as that process, and
// what the packages of the directory and the API set up takes 10 ms of
// processor time that a pod would wait for at each start.
//
// Go's linker orders the initialization of packages: of those whose imports are
// initialized, the one whose path comes first in the alphabet is next
// (https://go.dev/ref/spec#Program_initialization). So this package has a path
// that comes before those of the modules that podd uses, which is why it is a
// module of its own; podd's own packages would be the last.
package containerinit

import (
	"os"
	"runtime/debug"

	"github.com/opencontainers/runc/libcontainer"
	_ "github.com/opencontainers/runc/libcontainer/nsenter" // enters the namespaces before the Go runtime starts
)

// The process is one of libcontainer's if it was started with the argument
// "init" and told of a pipe; then this does not return.
func init() {
	if len(os.Args) > 1 && os.Args[1] == "init" && os.Getenv("_LIBCONTAINER_INITPIPE") != "" {
		// Its life as a Go program is too short for a collection to be of use.
		debug.SetGCPercent(-1)
		libcontainer.Init()
	}
}
