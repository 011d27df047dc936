// Package workload has the program that the benchmark moves, a server of any
// amount of memory, and says how to speak with it. The program is C, so that
// what is moved is what was asked for and not a language's runtime.
package workload

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

//go:embed server/server.c
var source string

// The server's protocol; server.c describes it.
const (
	Factor    = 0x9e3779b97f4a7c15
	AskGap    = 1<<63 | 1
	AskMemory = 1<<63 | 2
	AskCheck  = 1<<63 | 3
)

// Port is where the server listens if it is not told otherwise.
const Port = 7000

// Build compiles the server into a directory and returns its path.
func Build(ctx context.Context, dir string) (string, error) {
	file, program := filepath.Join(dir, "server.c"), filepath.Join(dir, "server")
	if err := os.WriteFile(file, []byte(source), 0o644); err != nil {
		return "", fmt.Errorf("building the server: %w", err)
	}
	if out, err := exec.CommandContext(ctx, "cc", "-static", "-O2", "-o", program, file).CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the server: %w\n%s", err, out)
	}
	return program, nil
}
