package cli_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"podd/cli"
)

// quickRaceExit keeps programs built with the race detector from sleeping for a
// second when they end.
const quickRaceExit = "GORACE=atexit_sleep_ms=0"

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"podctl": func() {
			os.Exit(cli.Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
		},
	})
}

// TestScripts specifies what podctl prints and how it exits, by the scripts in
// testdata. Each has a server of its own.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			socket := filepath.Join(env.WorkDir, "podd.sock")
			_, stop, err := startServer(socket)
			if err != nil {
				return err
			}
			env.Defer(stop)
			env.Vars = append(env.Vars, "PODCTL_HOST=unix://"+socket, "SOCKET="+socket,
				"XDG_CONFIG_HOME="+filepath.Join(env.WorkDir, "config"), "HOME="+env.WorkDir, quickRaceExit)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status": runForStatus,
		},
	})
}

// runForStatus is the script command "status CODE PROGRAM ARG...": the program
// must exit with CODE.
func runForStatus(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) < 2 {
		ts.Fatalf("usage: status CODE PROGRAM ARG...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	got := 0
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			ts.Fatalf("%v", err)
		}
		got = exit.ExitCode()
	}
	if got != want {
		ts.Fatalf("%s exited with %d, want %d", fmt.Sprint(args[1:]), got, want)
	}
}
