//go:build root

package namespace

import (
	"fmt"
	"os"
)

// helperArg makes the test program do one thing as another process would.
const helperArg = "namespace-test-helper"

func helper(args []string) {
	fmt.Fprintf(os.Stderr, "unknown helper %q\n", args)
	os.Exit(2)
}
