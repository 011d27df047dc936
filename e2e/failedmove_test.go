//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// These moves fail by what can happen to a machine, without any fault injected
// into the daemons; faults_test.go does that.

// slowLink limits what a node sends until the test's end, so that a move's
// presync takes long enough to be caught at it.
func slowLink(t *testing.T, node, rate string) (fast func()) {
	t.Helper()
	inNode(t, node, "tc", "qdisc", "replace", "dev", "uplink", "root", "tbf", "rate", rate, "burst", "128kb", "latency", "50ms")
	undone := false
	fast = func() {
		if !undone {
			undone = true
			inNode(t, node, "tc", "qdisc", "del", "dev", "uplink", "root")
		}
	}
	t.Cleanup(fast)
	return fast
}

// startMove moves a pod in the background, and returns when its files are on
// their way. wait returns how podctl ended.
func startMove(t *testing.T, name, target string) (wait func() result) {
	t.Helper()
	var known []moveView
	parseJSON(t, mustPodctl(t, "move", "ls", "-o", "json", name), &known)
	ended := make(chan struct{})
	var r result
	cmd := podctlCommand(bounded(t), "a", "move", name, target)
	var out, diagnostics strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &diagnostics
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(ended)
		cmd.Wait() // the exit code says it
		r = result{out.String(), diagnostics.String(), cmd.ProcessState.ExitCode()}
	}()
	t.Cleanup(func() { <-ended })
	until(t, "the pod's files are on their way", func() error {
		select {
		case <-ended:
			t.Fatalf("the move was over before it could be caught: %+v", r)
		default:
		}
		var moves []struct {
			moveView
			Stage pod.Stage `json:"stage"`
		}
		parseJSON(t, mustPodctl(t, "move", "ls", "-o", "json", name), &moves)
		if len(moves) == len(known) || moves[0].Stage != pod.StagePresync {
			return fmt.Errorf("the moves are %+v", moves)
		}
		return nil
	})
	return func() result { <-ended; return r }
}

// smallDisk gives a host a file system of that size to keep its state on.
func smallDisk(t *testing.T, host string, size int) {
	t.Helper()
	stop := func() {
		t.Helper()
		if err := theLab.Stop(bounded(t), host); err != nil && !errors.Is(err, pod.ErrNotFound) {
			t.Fatal(err)
		}
	}
	stop()
	t.Cleanup(func() { startDaemon(t, host) })
	memoryDisk(t, theLab.StateDir(host), fmt.Sprint(size))
	t.Cleanup(stop)
	startDaemon(t, host)
}

// fill writes a file until there is no space, and returns what removes it.
func fill(t *testing.T, dir string) (empty func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	block := make([]byte, 64<<10)
	for range 1 << 14 { // 1 GiB is more than any disk here has
		if _, err = f.Write(block); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("filling %s: %v", dir, err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

// A target without space says so, before the move if it is known and in its
// course if it is not.
func TestNoSpace(t *testing.T) {
	p := newBystander(t)
	smallDisk(t, "c", 110<<20)
	p.shell("head -c 60000000 /dev/urandom > /var/lib/bulk")
	words := []string{"host c: no space", theLab.StateDir("c"), "MiB free", "choose another host"}
	requireRefused(t, codeNotMovable, words, "move", "--dry-run", p.name, "c")
	requireRefused(t, codeError, append(words, p.name+" goes on running on a"), "move", p.name, "c")
	p.requireUndisturbed(t)

	p.shell("truncate -s 20000000 /var/lib/bulk")
	fast := slowLink(t, "a", "40mbit")
	wait := startMove(t, p.name, "c")
	empty := fill(t, theLab.StateDir("c"))
	requireResult(t, wait(), codeError, []string{"stage presync failed", "host c", "no space left on device", p.name + " goes on running on a"}, "the move to a full disk")
	fast()
	empty()
	p.requireUndisturbed(t)
	p.move("c")
	p.conn.ask("moved")
	p.move("a") // off the disk that is about to go
}

// The target's daemon dies while files arrive. The pod does not notice, and
// the target is clean when it is back.
func TestTargetDies(t *testing.T) {
	p := newBystander(t)
	p.shell("head -c 20000000 /dev/urandom > /var/lib/bulk")
	fast := slowLink(t, "a", "40mbit")
	wait := startMove(t, p.name, "c")
	killDaemon(t, "c")
	requireResult(t, wait(), codeError, []string{"stage presync failed", "host c", p.name + " goes on running on a"}, "the move to a host that died")
	fast()
	p.asked++
	if got, want := p.conn.ask("hello"), fmt.Sprintf("bystander %d hello", p.asked); got != want {
		t.Errorf("reply %q; want %q", got, want)
	}
	startDaemon(t, "c")
	p.requireUndisturbed(t)
	p.move("c")
	p.conn.ask("moved")
}

// CRIU itself fails on the target, because a file that the pod runs from is
// replaced after preflight has compared it. Its words are passed on.
func TestRestoreFails(t *testing.T) {
	image := packLayout(t, makeServerImage(t, "restore"))
	importImage(t, "a", "restore", image)
	importImage(t, "b", "restore", image)
	p := newPod(t, "", "--image", "restore", "-v", "bulk:/bulk")
	conn := dialLines(t, p.awaitPort(7000))
	conn.ask("before")
	before := p.inspect()
	bulk := filepath.Join(theLab.StateDir("a"), "pods", fmt.Sprintf("%s.%d", p.name, before.Epoch), "volumes", "bulk", "bulk")
	if err := os.WriteFile(bulk, []byte(strings.Repeat("no two lines are alike, but these", 300_000)), 0o644); err != nil {
		t.Fatal(err)
	}
	fast := slowLink(t, "a", "40mbit")
	wait := startMove(t, p.name, "b")
	found, err := filepath.Glob(filepath.Join(theLab.StateDir("b"), "images/layers/sha256/*/bin/lined"))
	if err != nil || len(found) != 1 {
		t.Fatalf("the server's program on host b: %v, %v", found, err)
	}
	data, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	replace := func(content []byte) {
		t.Helper()
		err := os.WriteFile(found[0]+".new", content, 0o755)
		if err == nil {
			err = os.Rename(found[0]+".new", found[0])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	replace(append(data[:len(data):len(data)], "something else"...))
	r := wait()
	requireResult(t, r, codeError, []string{"stage restore failed", "host b", "bin/lined", "bad size", p.name + " goes on running on a"}, "the move that CRIU gives up")
	fast()
	if got := conn.ask("after"); got != "image 2 after" {
		t.Errorf("reply %q", got)
	}
	if now := p.inspect(); now.Epoch != before.Epoch || now.Host != "a" || now.Phase != pod.PhaseRunning {
		t.Errorf("the pod is now %+v; it was %+v", now, before)
	}
	requireTidy(t)
	replace(data)
	p.move("b")
	if got := conn.ask("moved"); got != "image 3 moved" {
		t.Errorf("reply %q", got)
	}
}
