//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"podd/lab"
)

// strategyFlag is how memory is carried by moves whose test does not say.
var strategyFlag = flag.String("strategy", "", "by which strategy pods are moved, unless a test names one; podd chooses if it is empty")

// commandTimeout bounds every program that a test runs to its end.
const commandTimeout = 2 * time.Minute

// result is how a program ended.
type result struct {
	stdout, stderr string
	code           int
}

// run runs a command to its end. Without an exit code, as after a signal, the
// test fails but goes on: there is still something to clean up.
func run(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	if cmd.Stdout == nil {
		cmd.Stdout = &stdout
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !(errors.As(err, &exit) && exit.Exited()) {
		t.Errorf("%s: %v\n%s%s", strings.Join(cmd.Args, " "), err, &stdout, &stderr)
		return result{stdout.String(), stderr.String(), -1}
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// bounded is a context that ends with the test or after commandTimeout.
func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	t.Cleanup(cancel)
	return ctx
}

// podctlCommand is a podctl that talks to the podd of a host.
func podctlCommand(ctx context.Context, host string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(binDir, "podctl"), byStrategy(args)...)
	cmd.Env = append(os.Environ(), "PODCTL_HOST=unix://"+theLab.Socket(host))
	return cmd
}

// byStrategy adds -strategy to the arguments of a podctl that moves a pod, unless
// they have a strategy.
func byStrategy(args []string) []string {
	if *strategyFlag == "" || len(args) < 2 || args[0] != "move" || slices.Contains([]string{"ls", "show", "wait", "cancel"}, args[1]) {
		return args
	}
	for _, arg := range args {
		if strings.HasPrefix(arg, "--strategy") || arg == "--cancel" {
			return args
		}
	}
	return slices.Concat([]string{"move", "--strategy", *strategyFlag}, args[1:])
}

// podctl asks the podd of host a and returns how podctl ended.
func podctl(t *testing.T, args ...string) result {
	t.Helper()
	return run(t, podctlCommand(bounded(t), "a", args...))
}

// mustPodctl is podctl that has to succeed; it returns standard output.
func mustPodctl(t *testing.T, args ...string) string {
	t.Helper()
	r := podctl(t, args...)
	if r.code != 0 {
		t.Fatalf("podctl %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// inNode runs a program in the network of a node; it has to succeed. It
// returns standard output.
func inNode(t *testing.T, node string, argv ...string) string {
	t.Helper()
	r := run(t, theLab.CommandContext(bounded(t), node, argv...))
	if r.code != 0 {
		t.Fatalf("%s: exit code %d\n%s%s", strings.Join(argv, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// inClient is inNode for the client.
func inClient(t *testing.T, argv ...string) string {
	t.Helper()
	return inNode(t, lab.Client, argv...)
}

// until calls check until it returns nil, and fails the test with its last
// error when that takes longer than a machine can be slow.
func until(t *testing.T, what string, check func() error) {
	t.Helper()
	const limit, pause = 2 * time.Minute, 20 * time.Millisecond
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waiting until %s: %v", what, err)
		}
		<-time.After(pause)
	}
}
