//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"
)

// onTerminal starts podctl on a terminal.
func onTerminal(t *testing.T, args ...string) *terminal {
	t.Helper()
	return startOnTerminal(t, podctlCommand(bounded(t), "a", args...))
}

// counter is a main command that writes numbers, one line each.
const counter = `i=0; while :; do echo $i; i=$((i+1)); sleep 0.005; done`

// Somebody works in a pod with podctl exec -it.
func TestExecTerminal(t *testing.T) {
	p := newShell(t, "", "exec sleep 1000")
	shell := onTerminal(t, "exec", "-it", p.name, "--", "bash", "--norc")
	pid, tty := shell.answer("$$"), shell.answer("$(tty)")
	shell.enter("word=kept; cd /usr/share")
	for _, host := range []string{"b", "c"} {
		p.move(host)
		if got := shell.answer("$$ $(tty) $word $PWD"); got != pid+" "+tty+" kept /usr/share" {
			t.Errorf("on host %s the shell says %q", host, got)
		}
	}
	// The window's size goes the other way, to wherever the pod is.
	if err := shell.resize(33, 99); err != nil {
		t.Fatal(err)
	}
	until(t, "the shell's terminal has the new size", func() error {
		if got := shell.answer("$(stty size)"); got != "33 99" {
			return fmt.Errorf("it is %q", got)
		}
		return nil
	})
	shell.enter("exit 7")
	if code := shell.wait(); code != 7 {
		t.Errorf("podctl exec ended with %d; want the shell's 7", code)
	}
}

// Somebody is attached to a pod whose main command is a shell on a terminal.
func TestAttachTerminal(t *testing.T) {
	p := newPod(t, "", "-it", "--", "bash", "--norc")
	shell := onTerminal(t, "attach", p.name)
	pid := shell.answer("$$")
	shell.enter("word=kept")
	p.move("b")
	if got := shell.answer("$$ $word"); got != pid+" kept" {
		t.Errorf("after the move the shell says %q", got)
	}
	// Detached, and attached again after another move.
	shell.keys("\x10\x11")
	if code := shell.wait(); code != 0 {
		t.Errorf("detaching ended podctl with %d", code)
	}
	p.move("c")
	shell = onTerminal(t, "attach", p.name)
	if got := shell.answer("$$ $word"); got != pid+" kept" {
		t.Errorf("attached again, the shell says %q", got)
	}
	shell.enter("exit 5")
	if code := shell.wait(); code != 5 {
		t.Errorf("podctl attach ended with %d; want the shell's 5", code)
	}
}

// What exec carries in and out while the pod moves is neither lost nor doubled.
func TestExecStreams(t *testing.T) {
	p := newShell(t, "", "exec sleep 1000")
	const blocks, blockSize = 200, 64 << 10
	content := make([]byte, blocks*blockSize)
	if _, err := rand.Read(content); err != nil {
		t.Fatal(err)
	}
	// The command gives back what it is given, so both ways are seen at once.
	cmd := podctlCommand(bounded(t), "a", "exec", "-i", p.name, "--", "cat")
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	cmd.Stdout = &output
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	moved := make(chan struct{})
	written := make(chan error, 1)
	half := make(chan struct{})
	go func() {
		_, err := input.Write(content[:len(content)/2])
		close(half)
		// A trickle goes on until the pod has moved, then comes the rest.
		rest := content[len(content)/2:]
		for waiting := true; waiting && err == nil && len(rest) > 1000; {
			_, err = input.Write(rest[:100])
			rest = rest[100:]
			select {
			case <-moved:
				waiting = false
			default:
			}
		}
		if err == nil {
			_, err = input.Write(rest)
		}
		if e := input.Close(); err == nil {
			err = e
		}
		written <- err
	}()
	<-half
	p.move("b")
	close(moved)
	if err := <-written; err != nil {
		t.Errorf("writing to podctl: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("podctl exec: %v", err)
	}
	if got, want := sha256.Sum256(output.Bytes()), sha256.Sum256(content); got != want {
		t.Errorf("%d bytes came back with digest %s; want %d with %s", output.Len(), hex.EncodeToString(got[:]), len(content), hex.EncodeToString(want[:]))
	}
}

// Everything the main command writes is shown once, by whatever shows it.
func TestFollowing(t *testing.T) {
	p := newShell(t, "", counter)
	followers := map[string]*follower{
		"logs -f":                   follow(t, podctlCommand(bounded(t), "a", "logs", "-f", p.name)),
		"logs -f from another host": follow(t, podctlCommand(bounded(t), "c", "logs", "-f", p.name)),
		"attach":                    follow(t, podctlCommand(bounded(t), "a", "attach", "--no-stdin", p.name)),
	}
	for name, f := range followers {
		f.await(name, 10)
	}
	for _, host := range []string{"b", "c", "a"} {
		p.move(host)
		for name, f := range followers {
			f.await(name, 10)
		}
	}
	mustPodctl(t, "stop", "--time", "0", p.name)
	lines := strings.Fields(mustPodctl(t, "logs", p.name))
	for i, line := range lines {
		if line != fmt.Sprint(i) {
			t.Fatalf("line %d of the log is %q", i, line)
		}
	}
	for name, f := range followers {
		f.end(name, len(lines))
	}
}

// follower is a podctl that shows the output of counter.
type follower struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines *bufio.Scanner
	first int
	next  int
}

func follow(t *testing.T, cmd *exec.Cmd) *follower {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f := &follower{t: t, cmd: cmd, lines: bufio.NewScanner(out), first: -1}
	t.Cleanup(func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_, _ = io.Copy(io.Discard, out)
			_ = cmd.Wait()
		}
	})
	return f
}

// read reads a line, which has to be the next number, and reports whether
// there is one.
func (f *follower) read(name string) bool {
	f.t.Helper()
	if !f.lines.Scan() {
		return false
	}
	var n int
	if _, err := fmt.Sscan(f.lines.Text(), &n); err != nil {
		f.t.Fatalf("%s shows %q: %v", name, f.lines.Text(), err)
	}
	if f.first < 0 {
		f.first, f.next = n, n
	}
	if n != f.next {
		f.t.Fatalf("%s shows %d after %d", name, n, f.next-1)
	}
	f.next++
	return true
}

// await reads as far as the pod has come by now, and some lines more.
func (f *follower) await(name string, lines int) {
	f.t.Helper()
	for range lines {
		if !f.read(name) {
			f.t.Fatalf("%s has ended: %v", name, f.lines.Err())
		}
	}
}

// end reads the rest: there has to be a line for each number below total.
func (f *follower) end(name string, total int) {
	f.t.Helper()
	for f.read(name) {
	}
	if f.next != total {
		f.t.Errorf("%s has shown the lines from %d to %d; there are %d", name, f.first, f.next-1, total)
	}
	// Its exit code is attach's affair: that of the main command.
	_ = f.cmd.Wait()
}
