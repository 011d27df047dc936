//go:build e2e

package e2e

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
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

// guardVariable makes the test binary a guard of the directory it names.
const guardVariable = "PODD_E2E_GUARD"

// upTimeout bounds making the lab, downTimeout taking it down.
const (
	upTimeout   = 5 * time.Minute
	downTimeout = 2 * time.Minute
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(guardVariable); dir != "" {
		if err := guard(dir); err != nil {
			fmt.Fprintln(os.Stderr, "e2e:", err)
			os.Exit(1)
		}
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
	dismiss, err := startGuard(dir)
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
	theLab, err = lab.Up(ctx, lab.Options{Hosts: 3, Dir: labDir(dir), BinDir: binDir, LogLevel: "debug", DirectoryInMemory: true})
	if err != nil {
		return 1, err
	}
	stop() // from here on a signal ends the process, and the guard does the rest
	return m.Run(), nil
}

// labDir is where the lab of a run in dir keeps state and logs.
func labDir(dir string) string { return filepath.Join(dir, "lab") }

// buildPrograms builds this tree's daemons, with faults that can be injected,
// podctl, podinit and the page filter.
func buildPrograms(dir string) (string, error) {
	bin := filepath.Join(dir, "bin")
	for _, argv := range [][]string{
		{"go", "build", "-tags", "seccomp,faults", "-o", bin + "/", "podd/cmd/podd", "podd/cmd/podproxy", "podd/cmd/podctl"},
		{"cc", "-static", "-O2", "-Wall", "-Wextra", "-o", filepath.Join(bin, "podinit"), "../namespace/podinit/podinit.c"},
		{"cc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-o", filepath.Join(bin, "podd-pagefilter.so"), "../checkpoint/pagefilter/pagefilter.c"},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%s: %w\n%s", strings.Join(argv, " "), err, out)
		}
	}
	return bin, nil
}

// startGuard starts a process that takes the lab down and removes dir when
// this one ends, be it by a panic, a timeout or a signal. dismiss makes it do
// so at once and returns what it complains about.
func startGuard(dir string) (dismiss func() error, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), guardVariable+"="+dir)
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the terminal's signals are not for it
	life, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the guard: %w", err)
	}
	return func() error {
		err := errors.Join(life.Close(), cmd.Wait())
		if err != nil {
			err = fmt.Errorf("taking the lab down: %w", err)
		}
		return err
	}, nil
}

// guard waits for the end of the process that started it and takes down what
// that has made.
func guard(dir string) error {
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), downTimeout)
	defer cancel()
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	switch l, err := lab.Load(); {
	case errors.Is(err, lab.ErrNone):
	case err != nil:
		return err
	case l.Dir != labDir(dir):
		log.Warn("a lab is up that is none of this run's; it is left alone", "directory", l.Dir)
		return os.RemoveAll(dir)
	default:
		if err := l.Down(ctx); err != nil {
			return err
		}
	}
	left, err := lab.Leftovers(labDir(dir))
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("left over from the lab:\n%s", strings.Join(left, "\n"))
	}
	return os.RemoveAll(dir)
}
