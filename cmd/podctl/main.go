// Command podctl runs sessions in pods and moves them between hosts. Everything
// it does is in package cli.
package main

import (
	"context"
	"os"

	"podd/cli"
)

func main() {
	os.Exit(cli.Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
