//go:build root

package namespace

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// helperArg makes the test program do one thing as another process would: as a
// podd that was started again.
const helperArg = "namespace-test-helper"

// runHelper runs the test program as another podd with the same directories.
func runHelper(t *testing.T, opts Options, args ...string) string {
	t.Helper()
	args = append([]string{helperArg, opts.StateDir, opts.RunDir, opts.CgroupParent, opts.InitPath}, args...)
	cmd := exec.CommandContext(testContext(t), "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0") // the race detector waits a second by default
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%q: %v: %s", args, err, out)
	}
	return string(out)
}

func helper(args []string) {
	if err := help(context.Background(), args); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func help(ctx context.Context, args []string) error {
	r, err := Open(Options{StateDir: args[0], RunDir: args[1], CgroupParent: args[2], InitPath: args[3], Images: hostImage})
	if err != nil {
		return err
	}
	switch args[4] {
	case "list":
		list, err := r.List()
		for _, c := range list {
			_, running := c.PID()
			fmt.Println(c.ID(), running)
		}
		return err
	case "exec": // the pod's name, the command
		c, err := r.Load(args[5], 1)
		if err != nil {
			return err
		}
		s, err := c.Exec(ctx, ExecConfig{Command: args[6:]})
		if err != nil {
			return err
		}
		defer s.Close()
		for {
			e, err := s.Read()
			if err != nil {
				return err
			}
			fmt.Print(string(e.Stdout), string(e.Stderr))
			if e.Exited {
				fmt.Println(e.ExitCode)
				return nil
			}
		}
	case "wait":
		c, err := r.Load(args[5], 1)
		if err != nil {
			return err
		}
		fmt.Println("waiting")
		code, err := c.Wait(ctx)
		fmt.Println(code)
		return err
	case "start": // a network namespace; then die as a crash would
		config := Config{Epoch: 1, NetNS: args[5]}
		config.Spec.Name, config.Spec.Image, config.Spec.Command = "crash", "host", strings.Fields("sleep 1000")
		c, err := r.Prepare(ctx, config)
		if err != nil {
			return err
		}
		if len(args) > 6 && args[6] == "prepared" {
			return nil
		}
		return c.Start(ctx, nil)
	}
	return fmt.Errorf("unknown helper %q", args)
}
