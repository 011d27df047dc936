package cli_test

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"podd/cli"
	"podd/trust"
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
			server, stop, err := startServer(socket)
			if err != nil {
				return err
			}
			env.Defer(stop)
			env.Vars = append(env.Vars, "PODCTL_HOST=unix://"+socket, "SOCKET="+socket, "URL=https://"+server.tls,
				"XDG_CONFIG_HOME="+filepath.Join(env.WorkDir, "config"), "HOME="+env.WorkDir, quickRaceExit)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":       runForStatus,
			"othercluster": replaceCredentials,
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

// replaceCredentials is the script command "othercluster DIR": the credentials
// there are from now on a user's of a cluster that nobody else is in.
func replaceCredentials(ts *testscript.TestScript, negated bool, args []string) {
	if negated || len(args) != 1 {
		ts.Fatalf("usage: othercluster DIR")
	}
	cluster, err := newFakeTrust(ts.MkAbs("other"))
	ts.Check(err)
	_, key, err := ed25519.GenerateKey(nil)
	ts.Check(err)
	request, err := trust.NewRequest(key)
	ts.Check(err)
	chain, _, err := cluster.authority.Issue(request, trust.Profile{
		Identity: trust.Identity{Kind: trust.KindUser, Name: "mallory", Role: trust.RoleAdmin},
	})
	ts.Check(err)
	ts.Check(os.RemoveAll(ts.MkAbs(args[0])))
	_, err = trust.Create(ts.MkAbs(args[0]), trust.Membership{Key: key, Chain: chain, Authority: cluster.store.AuthorityPEM()})
	ts.Check(err)
}
