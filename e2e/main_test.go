//go:build e2e

package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"podd/checkpoint"
	"podd/lab"
)

var (
	// theLab is up while tests run.
	theLab *lab.Lab
	// binDir has the programs, built from this tree.
	binDir string
)

// upTimeout bounds making the lab.
const upTimeout = 5 * time.Minute

func TestMain(m *testing.M) {
	if guard, err := lab.RunGuard(cleanUp); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		os.Exit(1)
	} else if guard {
		os.Exit(0)
	}
	flag.Parse()
	code, err := runTests(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

// runTests brings the lab up, runs the tests and has everything taken down.
func runTests(m *testing.M) (code int, err error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("these tests need root: they make a lab of network namespaces; try sudo, or just test-e2e")
	}
	if _, err := checkpoint.Open(checkpoint.Options{}); err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("/var/lib", "podd-e2e-")
	if err != nil {
		return 1, err
	}
	dismiss, err := lab.StartGuard(dir)
	if err != nil {
		return 1, errors.Join(err, os.RemoveAll(dir))
	}
	defer func() { err = errors.Join(err, dismiss()) }()
	if binDir, err = buildPrograms(dir); err != nil {
		return 1, err
	}
	// Without this an interrupt would end the process at once; the guard
	// copes, but here it can be said what was going on.
	interrupt, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(interrupt, upTimeout)
	defer cancel()
	// How fast the machine's disk syncs is no business of these tests.
	theLab, err = lab.Up(ctx, lab.Options{Hosts: 3, Dir: lab.DirIn(dir), BinDir: binDir, LogLevel: "debug", DirectoryInMemory: true})
	if err != nil {
		return 1, err
	}
	stop() // from here on a signal ends the process, and the guard does the rest
	return m.Run(), nil
}

// buildPrograms builds this tree's daemons, with faults that can be injected,
// podctl, podinit and the page filter.
func buildPrograms(dir string) (string, error) {
	bin := filepath.Join(dir, "bin")
	filter, err := filepath.Glob("../checkpoint/pagefilter/*.c")
	if err != nil {
		return "", err
	}
	for _, argv := range [][]string{
		{"go", "build", "-tags", "seccomp,faults", "-o", bin + "/", "podd/cmd/podd", "podd/cmd/podproxy", "podd/cmd/podctl"},
		{"cc", "-static", "-O2", "-Wall", "-Wextra", "-o", filepath.Join(bin, "podinit"), "../namespace/podinit/podinit.c"},
		append([]string{"cc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-o", filepath.Join(bin, "podd-pagefilter.so")}, filter...),
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
		}
	}
	return bin, nil
}

// cleanUp removes what a run in dir has made, and complains about what its lab has
// left. Of a lab that can't be taken down everything stays.
func cleanUp(dir string, down error) error {
	if errors.Is(down, lab.ErrUp) {
		fmt.Fprintln(os.Stderr, "e2e:", down)
		return os.RemoveAll(dir)
	}
	if down != nil {
		return down
	}
	left, err := lab.Leftovers(lab.DirIn(dir))
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("left over from the lab:\n%s", strings.Join(left, "\n"))
	}
	return os.RemoveAll(dir)
}
