package cli_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// onTerminal is podctl on a terminal of its own.
type onTerminal struct {
	t       *testing.T
	master  console.Console
	slave   *os.File
	before  *term.State
	process *exec.Cmd
	output  chan string
	seen    string // the part of the output that is still to be looked at
}

// startOnTerminal starts podctl, which TestMain makes of the test binary, with
// a terminal of 80 columns and 24 rows.
func startOnTerminal(t *testing.T, args ...string) *onTerminal {
	t.Helper()
	master, path, err := console.NewPty()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	if err := master.Resize(console.WinSize{Width: 80, Height: 24}); err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	before, err := term.GetState(int(slave.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	program, err := exec.LookPath("podctl")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	o := &onTerminal{t: t, master: master, slave: slave, before: before, output: make(chan string, 1024)}
	o.process = exec.CommandContext(ctx, program, args...)
	o.process.Env = append(os.Environ(), quickRaceExit)
	o.process.Stdin, o.process.Stdout, o.process.Stderr = slave, slave, slave
	o.process.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := o.process.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends when the terminal is closed
		defer close(o.output)
		reader := bufio.NewReader(master)
		for {
			chunk := make([]byte, 4096)
			n, err := reader.Read(chunk)
			o.output <- string(chunk[:n])
			if err != nil {
				return
			}
		}
	}()
	return o
}

// expect waits until podctl has written text, after what was expected before.
func (o *onTerminal) expect(text string) {
	o.t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		if _, after, found := strings.Cut(o.seen, text); found {
			o.seen = after
			return
		}
		select {
		case chunk := <-o.output:
			o.seen += chunk
		case <-deadline:
			o.t.Fatalf("%q did not appear; the terminal shows %q", text, o.seen)
		}
	}
}

// shown is what podctl has written and nobody has expected.
func (o *onTerminal) shown() string {
	for {
		select {
		case chunk := <-o.output:
			o.seen += chunk
		default:
			return o.seen
		}
	}
}

// press types keys once podctl wants them one by one: before that the terminal
// itself would act on some.
func (o *onTerminal) press(keys string) {
	o.t.Helper()
	waitFor(o.t, func() bool {
		settings, err := unix.IoctlGetTermios(int(o.slave.Fd()), unix.TCGETS)
		if err != nil {
			o.t.Fatal(err)
		}
		return settings.Lflag&unix.ICANON == 0
	})
	if _, err := o.master.Write([]byte(keys)); err != nil {
		o.t.Fatal(err)
	}
}

// finish waits for podctl's end and checks that the terminal is as before.
func (o *onTerminal) finish(wantCode int) {
	o.t.Helper()
	code := 0
	if err := o.process.Wait(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			o.t.Fatal(err)
		}
		code = exit.ExitCode()
	}
	if code != wantCode {
		o.t.Errorf("exit code %d, want %d; the terminal shows %q", code, wantCode, o.shown())
	}
	after, err := term.GetState(int(o.slave.Fd()))
	if err != nil {
		o.t.Fatal(err)
	}
	if *after != *o.before {
		o.t.Error("the terminal's settings are not what they were before")
	}
}

func TestTerminalKeysAndDetach(t *testing.T) {
	s, socket := newServer(t)
	o := startOnTerminal(t, "--socket", socket, "run", "-it", "--name", "p", "cat")
	o.press("a\x03b\x10c") // ctrl-c is a key like others, and so is ctrl-p alone
	o.expect("a\x03b\x10c")
	o.press("\x10\x11")
	o.expect("podctl: detached from p")
	o.finish(0)
	p, err := s.get("p")
	if err != nil || !p.record.Phase.Live() {
		t.Fatalf("the pod should run on after detaching: %v", err)
	}
}

func TestTerminalSize(t *testing.T) {
	_, socket := newServer(t)
	o := startOnTerminal(t, "--socket", socket, "run", "-it", "--name", "p", "size")
	o.expect("80x24")
	if err := o.master.Resize(console.WinSize{Width: 100, Height: 30}); err != nil {
		t.Fatal(err)
	}
	o.expect("100x30")
	// A signal ends podctl, and the terminal is still restored.
	if err := o.process.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	o.finish(128 + int(unix.SIGTERM))
}

func TestTerminalProgressIsDrawnInPlace(t *testing.T) {
	_, socket := newServer(t)
	if code, _, stderr := podctl(t, socket, nil, "run", "-d", "--name", "p", "sleep"); code != 0 {
		t.Fatal(stderr)
	}
	o := startOnTerminal(t, "--socket", socket, "move", "p", "b")
	o.expect("\x1b[10A")
	o.expect("established TCP connections carried")
	o.finish(0)
}

// Without a terminal signals go to the command, which decides what becomes of it.
func TestSignalsArePassedOn(t *testing.T) {
	s, socket := newServer(t)
	program, err := exec.LookPath("podctl")
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(program, "--socket", socket, "run", "--name", "p", "sleep")
	command.Env = append(os.Environ(), quickRaceExit)
	var stderr bytes.Buffer
	command.Stderr = &stderr
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.routes) == 2 // created and attached: signals are passed on now
	})
	if err := command.Process.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	err = command.Wait()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 128+int(unix.SIGUSR1) || stderr.Len() > 0 {
		t.Errorf("podctl ended with %v and %q, want the command's own code", err, stderr.String())
	}
}

func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("the condition did not come true")
		}
	}
}
