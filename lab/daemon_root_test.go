//go:build root

package lab

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"podd/pod"
	"podd/trust"
)

var programsDir string // of programs

// programs builds the daemons, once, and returns where they are.
var programs = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "poddtest-lab-bin-")
	if err != nil {
		return "", err
	}
	programsDir = dir
	for _, argv := range [][]string{
		{"go", "build", "-tags", "seccomp", "-o", dir + "/", "podd/cmd/podd", "podd/cmd/podproxy", "podd/cmd/podctl"},
		{"cc", "-static", "-O2", "-o", filepath.Join(dir, "podinit"), "../namespace/podinit/podinit.c"},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			return dir, errors.Join(errors.New(strings.Join(argv, " ")+": "+string(out)), err)
		}
	}
	return dir, nil
})

// binDir returns a directory with the daemons.
func binDir(t *testing.T) string {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func requirePID(t *testing.T, l *Lab, node string) int {
	t.Helper()
	pid, err := l.PID(node)
	if err != nil {
		t.Fatal(err)
	}
	if pid == 0 {
		t.Fatalf("the daemon of node %s does not run", node)
	}
	return pid
}

func TestRootDaemons(t *testing.T) {
	requireNone(t)
	ctx := t.Context()
	l, err := Up(ctx, Options{Hosts: 2, BinDir: binDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { requireDown(t, l) })
	for _, node := range l.Daemons() {
		requirePID(t, l, node)
	}
	for _, host := range l.HostNames() {
		store, err := trust.Open(trust.Dir(l.StateDir(host)))
		if err != nil || store.Identity().String() != "host "+host {
			t.Errorf("host %s has the credentials %v, error %v", host, store, err)
		}
		if _, err := os.Lstat(filepath.Join(l.RunDir(host), "token")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the token of host %s was left: %v", host, err)
		}
	}
	if token, err := l.Token(ctx, trust.KindUser, "jane", trust.RoleViewer); err != nil || !strings.HasPrefix(token, "podd1.") {
		t.Errorf("a token %q, error %v", token, err)
	}
	if err := l.Start(ctx, "a"); !errors.Is(err, pod.ErrExists) {
		t.Errorf("starting what runs: error %v; want one that wraps ErrExists", err)
	}

	// Another process would find the lab so.
	again, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	killed := requirePID(t, again, "a")
	if err := errors.Join(again.Kill("a", unix.SIGKILL), again.Wait(ctx, "a")); err != nil {
		t.Fatal(err)
	}
	if pid, err := l.PID("a"); pid != 0 || err != nil {
		t.Errorf("after it was killed: process %d, error %v", pid, err)
	}
	if err := l.Kill("a", unix.SIGTERM); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("killing what does not run: error %v; want one that wraps ErrNotFound", err)
	}
	err = l.Start(ctx, "a", "--log-format", "morse")
	if err == nil || !strings.Contains(err.Error(), "morse") || !strings.Contains(err.Error(), "it ended") {
		t.Errorf("a daemon that ends: error %v; want the end of its log", err)
	}
	if err := l.Start(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if pid := requirePID(t, again, "a"); pid == killed {
		t.Errorf("the same process %d after a restart", pid)
	}
	for _, node := range []string{Proxy, "b"} {
		before := requirePID(t, l, node)
		if err := l.Restart(ctx, node); err != nil {
			t.Fatal(err)
		}
		if pid := requirePID(t, l, node); pid == before {
			t.Errorf("the daemon of node %s was not restarted", node)
		}
	}
	statuses, err := l.Status()
	if err != nil || len(statuses) != 5 {
		t.Fatalf("status %+v, error %v; want 5 nodes", statuses, err)
	}
	for _, s := range statuses {
		if s.Daemon != "" && s.PID == 0 {
			t.Errorf("status of %s: %+v", s.Node, s)
		}
	}
}

// Down ends pods, of daemons that were killed too, and removes all that was
// made for them.
func TestRootDownWithPods(t *testing.T) {
	requireNone(t)
	l, err := Up(t.Context(), Options{Hosts: 2, BinDir: binDir(t), DirectoryInMemory: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { requireDown(t, l) })
	for _, pod := range []struct{ host, name string }{{"a", "alice"}, {"a", "carol"}, {"b", "bob"}} {
		podctl := exec.Command(filepath.Join(binDir(t), "podctl"), "run", "-d", "--name", pod.name, "--", "sh", "-c", "sleep 1000 & sleep 1000")
		podctl.Env = append(os.Environ(), "PODCTL_HOST=unix://"+l.Socket(pod.host))
		if out, err := podctl.CombinedOutput(); err != nil {
			t.Fatalf("running pod %s: %v\n%s\nthe log of %s:\n%s", pod.name, err, out, pod.host, l.LogTail(pod.host, logTail))
		}
	}
	if err := errors.Join(l.Kill("a", unix.SIGKILL), l.Wait(t.Context(), "a")); err != nil {
		t.Fatal(err)
	}
	lines, err := Leftovers()
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(strings.Join(lines, "\n"), " sleep 1000"); n < 3*2 {
		t.Errorf("%d processes of pods; want 6 at least:\n%s", n, strings.Join(lines, "\n"))
	}
}

func TestRootUpFails(t *testing.T) {
	requireNone(t)
	bin := t.TempDir()
	for name, target := range map[string]string{"podproxy": filepath.Join(binDir(t), "podproxy"), "podinit": filepath.Join(binDir(t), "podinit")} {
		if err := os.Symlink(target, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Up(t.Context(), Options{BinDir: bin}); !errors.Is(err, pod.ErrNotFound) || !strings.Contains(err.Error(), "podd") {
		t.Errorf("without podd: error %v; want one that wraps ErrNotFound", err)
	}
	if err := os.WriteFile(filepath.Join(bin, "podd"), []byte("#!/bin/sh\necho no luck today\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Up(t.Context(), Options{BinDir: bin}); err == nil || !strings.Contains(err.Error(), "no luck today") {
		t.Errorf("with a podd that ends: error %v; want the end of its log", err)
	}
	requireNone(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Up(ctx, Options{BinDir: binDir(t)}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: error %v", err)
	}
	requireNone(t)
}
