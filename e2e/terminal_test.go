//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// terminal is a program on a pseudo-terminal of its own, with somebody at the
// keyboard.
type terminal struct {
	t      *testing.T
	master console.Console
	cmd    *exec.Cmd
	ended  chan struct{}

	mu     sync.Mutex
	output strings.Builder
	// seen is how much of the output expect has consumed.
	seen int
	// more is closed, and replaced, when there is more output.
	more chan struct{}
}

// startOnTerminal starts a program on a terminal of 24 rows and 80 columns.
// It is killed when the test ends.
func startOnTerminal(t *testing.T, cmd *exec.Cmd) *terminal {
	t.Helper()
	master, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	if err := master.Resize(console.WinSize{Height: 24, Width: 80}); err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	// Its signals mean what they do after a login. Tests that are run in the
	// background have some ignored, and podctl would keep to that.
	handled := make(chan os.Signal, 1)
	signal.Notify(handled, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP)
	err = cmd.Start()
	signal.Stop(handled)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{t: t, master: master, cmd: cmd, ended: make(chan struct{}), more: make(chan struct{})}
	var reader sync.WaitGroup
	reader.Go(term.read)
	go func() {
		defer close(term.ended)
		_ = cmd.Wait() // its exit code is in ProcessState
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-term.ended
		master.Close()
		reader.Wait()
	})
	return term
}

// read collects the output until the terminal is closed at both ends.
func (t *terminal) read() {
	buffer := make([]byte, 4096)
	for {
		n, err := t.master.Read(buffer)
		t.mu.Lock()
		t.output.Write(buffer[:n])
		close(t.more)
		t.more = make(chan struct{})
		t.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// enter types a line.
func (t *terminal) enter(line string) {
	t.t.Helper()
	t.keys(line + "\r")
}

// keys types keys.
func (t *terminal) keys(keys string) {
	t.t.Helper()
	if _, err := t.master.Write([]byte(keys)); err != nil {
		t.t.Fatalf("typing %q: %v", keys, err)
	}
}

// expect waits until text is shown after what an earlier expect has found, and
// returns what was shown up to it.
func (t *terminal) expect(text string) string {
	t.t.Helper()
	deadline := time.NewTimer(replyTimeout)
	defer deadline.Stop()
	for {
		t.mu.Lock()
		rest, more := t.output.String()[t.seen:], t.more
		i := strings.Index(rest, text)
		if i >= 0 {
			t.seen += i + len(text)
		}
		t.mu.Unlock()
		if i >= 0 {
			return rest[:i]
		}
		select {
		case <-more:
		case <-deadline.C:
			t.t.Fatalf("waiting for %q on the terminal; it shows\n%s", text, rest)
		}
	}
}

// answer has the shell on the terminal print the value of an expression. The
// command's own echo does not look like the answer.
func (t *terminal) answer(expression string) string {
	t.t.Helper()
	t.enter(fmt.Sprintf(`echo "@""<%s>"`, expression))
	t.expect("@<")
	return t.expect(">")
}

// wait waits for the end of the program and returns its exit code.
func (t *terminal) wait() int {
	t.t.Helper()
	select {
	case <-t.ended:
		return t.cmd.ProcessState.ExitCode()
	case <-time.After(replyTimeout):
		t.t.Fatal("the program on the terminal does not end")
		return 0
	}
}

// resize gives the terminal another size, as dragging its window would.
func (t *terminal) resize(rows, columns uint16) error {
	if err := t.master.Resize(console.WinSize{Height: rows, Width: columns}); err != nil {
		return err
	}
	return t.cmd.Process.Signal(syscall.SIGWINCH)
}
