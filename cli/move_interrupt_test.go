package cli_test

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// interrupt types Ctrl-C on a terminal whose program does not read keys.
func (o *onTerminal) interrupt() {
	o.t.Helper()
	if _, err := o.master.Write([]byte("\x03")); err != nil {
		o.t.Fatal(err)
	}
}

func startSleeper(t *testing.T) (s *server, socket string) {
	t.Helper()
	s, socket = newServer(t)
	if code, _, stderr := podctl(t, socket, nil, "run", "-d", "--name", "p", "sleep"); code != 0 {
		t.Fatal(stderr)
	}
	return s, socket
}

// moveState is how the first move stands.
func (s *server) moveState() pod.MoveState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.moves[0].State
}

func TestInterruptedMoveIsUndone(t *testing.T) {
	for _, target := range []string{"slow", "busy"} {
		s, socket := startSleeper(t)
		o := startOnTerminal(t, "--socket", socket, "move", "p", target)
		o.expect(map[string]string{"slow": "reserve", "busy": "queued"}[target])
		o.interrupt()
		o.expect("having the move undone; once more leaves it to podd")
		o.expect("failed: cancelled: SIGINT to podctl")
		o.expect("podctl: p goes on running on a")
		o.finish(128 + int(unix.SIGINT))
		if state := s.moveState(); state != pod.MoveAborted {
			t.Errorf("the move is %s", state)
		}
	}
}

// It is too late: the pod has moved, and podctl says so.
func TestInterruptedMoveIsDone(t *testing.T) {
	s, socket := startSleeper(t)
	o := startOnTerminal(t, "--socket", socket, "move", "p", "hasty")
	o.expect("reserve")
	o.interrupt()
	o.expect("it is too late to cancel move m1: pod p is on host hasty")
	o.expect("established TCP connections carried")
	o.finish(0)
	if state := s.moveState(); state != pod.MoveDone {
		t.Errorf("the move is %s", state)
	}
}

// A podd that does not undo the move can be left alone with it.
func TestSecondInterruptLeaves(t *testing.T) {
	s, socket := startSleeper(t)
	s.deaf = true
	o := startOnTerminal(t, "--socket", socket, "move", "p", "slow")
	o.expect("reserve")
	o.interrupt()
	o.expect("having the move undone")
	o.interrupt()
	o.expect("the move is undone without podctl: podctl move wait m1 tells how it ends")
	o.finish(128 + int(unix.SIGINT))
}

// A move that has no ID yet can't be cancelled, only left.
func TestInterruptsBeforeTheMove(t *testing.T) {
	_, socket := startSleeper(t)
	o := startOnTerminal(t, "--socket", socket, "move", "p", "mute")
	o.expect("preflight")
	o.interrupt()
	o.expect("having the move undone")
	o.interrupt()
	o.expect("the move had not begun; podd gives it up")
	o.finish(128 + int(unix.SIGINT))
}

// Whoever only waits for a move does not end it.
func TestInterruptedWait(t *testing.T) {
	s, socket := startSleeper(t)
	if code, id, stderr := podctl(t, socket, nil, "move", "-d", "p", "slow"); code != 0 || id != "m1\n" {
		t.Fatalf("exit code %d, %q, %s", code, id, stderr)
	}
	o := startOnTerminal(t, "--socket", socket, "move", "wait", "m1")
	o.expect("moving p to slow")
	o.expect("reserve")
	o.interrupt()
	o.expect("the move goes on without podctl: podctl move wait m1 follows it")
	o.finish(128 + int(unix.SIGINT))
	if state := s.moveState(); state != pod.MoveRunning {
		t.Errorf("the move is %s", state)
	}
}

// Without a terminal SIGTERM is what Ctrl-C is on one, and a hangup leaves.
func TestSignalledMove(t *testing.T) {
	for signal, want := range map[unix.Signal]string{
		unix.SIGTERM: "stage reserve failed: cancelled: SIGTERM to podctl",
		unix.SIGHUP:  "the move goes on without podctl: podctl move wait m1 follows it",
	} {
		_, socket := startSleeper(t)
		program, err := exec.LookPath("podctl")
		if err != nil {
			t.Fatal(err)
		}
		command := exec.Command(program, "--socket", socket, "move", "p", "slow")
		command.Env = append(os.Environ(), quickRaceExit)
		var stderr lockedBuffer
		command.Stderr = &stderr
		if err := command.Start(); err != nil {
			t.Fatal(err)
		}
		// preflight is written when reserve begins, with the move's ID.
		waitFor(t, func() bool { return strings.Contains(stderr.String(), "preflight") })
		if err := command.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		err = command.Wait()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 128+int(signal) || !strings.Contains(stderr.String(), want) {
			t.Errorf("%s: podctl ended with %v: %s", signal, err, stderr.String())
		}
	}
}

// lockedBuffer can be read while a program writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
