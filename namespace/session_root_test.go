//go:build root

package namespace

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// sessionOutput reads a session to its end.
func sessionOutput(t *testing.T, s *Session) (code int, stdout, stderr string) {
	t.Helper()
	defer s.Close()
	var out, errs bytes.Buffer
	for {
		e, err := s.Read()
		if err != nil {
			t.Fatalf("after %q and %q: %v", &out, &errs, err)
		}
		out.Write(e.Stdout)
		errs.Write(e.Stderr)
		if e.Exited {
			return e.ExitCode, out.String(), errs.String()
		}
	}
}

func startExec(t *testing.T, c *Container, config ExecConfig) *Session {
	t.Helper()
	s, err := c.Exec(testContext(t), config)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestExec(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	config := testConfig(t, "sleep", "1000")
	config.Spec.User = "1000"
	config.Spec.Env = []string{"COLOUR=blue"}
	c := start(t, r, config)

	t.Run("output, status and identity", func(t *testing.T) {
		code, out, stderr := sessionOutput(t, startExec(t, c, ExecConfig{
			Command: []string{"sh", "-c", "id -u; echo $COLOUR$X; pwd; echo oops >&2; exit 7"},
			Env:     []string{"X=y"}, WorkDir: "/tmp",
		}))
		if code != 7 || out != "1000\nbluey\n/tmp\n" || stderr != "oops\n" {
			t.Errorf("got %d, %q, %q", code, out, stderr)
		}
	})
	t.Run("another user", func(t *testing.T) {
		code, out, stderr := sessionOutput(t, startExec(t, c, ExecConfig{Command: []string{"sh", "-c", "id -u; echo $HOME"}, User: "root"}))
		if code != 0 || out != "0\n/root\n" || stderr != "" {
			t.Errorf("got %d, %q, %q", code, out, stderr)
		}
	})
	t.Run("missing command", func(t *testing.T) {
		code, _, stderr := sessionOutput(t, startExec(t, c, ExecConfig{Command: []string{"/no/such"}}))
		if code != 127 || !strings.Contains(stderr, "No such file") {
			t.Errorf("got %d, %q", code, stderr)
		}
		code, _, stderr = sessionOutput(t, startExec(t, c, ExecConfig{Command: []string{"/etc/passwd"}}))
		if code != 126 || !strings.Contains(stderr, "Permission denied") {
			t.Errorf("got %d, %q", code, stderr)
		}
	})
	t.Run("stdin", func(t *testing.T) {
		s := startExec(t, c, ExecConfig{Command: []string{"sh", "-c", "cat; exit 4"}, Stdin: true})
		input := strings.Repeat("0123456789abcdef", 64<<10/16*5)
		go func() {
			if _, err := s.Write([]byte(input)); err != nil {
				t.Error(err)
			}
			if err := s.CloseInput(); err != nil {
				t.Error(err)
			}
		}()
		code, out, _ := sessionOutput(t, s)
		if code != 4 || out != input {
			t.Errorf("got %d and %d bytes, want %d", code, len(out), len(input))
		}
		if n := s.Accepted(); n != uint64(len(input)) {
			t.Errorf("%d bytes were accepted, want %d", n, len(input))
		}
	})
	t.Run("terminal", func(t *testing.T) {
		s := startExec(t, c, ExecConfig{Command: []string{"sh", "-c", "stty size; read x; stty size; echo got $x; tty"}, TTY: true, Rows: 40, Columns: 132})
		if err := s.Resize(50, 100); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Write([]byte("hello\n")); err != nil {
			t.Fatal(err)
		}
		code, out, _ := sessionOutput(t, s)
		if code != 0 || !strings.Contains(out, "50 100\r\ngot hello\r\n/dev/pts/") {
			t.Errorf("got %d, %q", code, out)
		}
	})
	t.Run("reconnect", func(t *testing.T) {
		s := startExec(t, c, ExecConfig{Command: []string{"sh", "-c", "echo one; read x; echo $x; exit 5"}, Stdin: true})
		if e, err := s.Read(); err != nil || string(e.Stdout) != "one\n" {
			t.Fatalf("got %q, %v", e.Stdout, err)
		}
		if err := c.CloseSessions(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Read(); !errors.Is(err, ErrInterrupted) {
			t.Fatalf("got %v, want ErrInterrupted", err)
		}
		if _, err := c.Exec(testContext(t), ExecConfig{Command: []string{"true"}}); !errors.Is(err, ErrInterrupted) {
			t.Fatalf("got %v, want ErrInterrupted", err)
		}
		s.Close()
		c.OpenSessions()
		again, err := c.Session(testContext(t), s.ID())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := again.Write([]byte("two\n")); err != nil {
			t.Fatal(err)
		}
		code, out, _ := sessionOutput(t, again)
		if code != 5 || out != "two\n" {
			t.Errorf("got %d, %q", code, out)
		}
		if ids, err := c.Sessions(); err != nil || len(ids) != 0 {
			t.Errorf("sessions are left: %v, %v", ids, err)
		}
	})
	t.Run("hang up", func(t *testing.T) {
		s := startExec(t, c, ExecConfig{Command: []string{"sleep", "1000"}, TTY: true})
		if err := s.Hangup(); err != nil {
			t.Fatal(err)
		}
		if code, _, _ := sessionOutput(t, s); code != 129 {
			t.Errorf("got %d", code)
		}
	})
}

func TestAttach(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	config := testConfig(t, "sh", "-c", "read x; stty size; echo got $x; exit 9")
	config.Spec.TTY = true
	config.Spec.User = "1000"
	c := start(t, r, config)
	s, err := c.Attach(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Resize(33, 111); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Write([]byte("hello\n")); err != nil {
		t.Fatal(err)
	}
	if code := wait(t, c); code != 9 {
		t.Errorf("ended with %d", code)
	}
	if out, _ := logs(t, c); !strings.Contains(out, "33 111\r\ngot hello\r\n") {
		t.Errorf("said %q", out)
	}
	if _, err := s.Read(); !errors.Is(err, ErrInterrupted) {
		t.Errorf("got %v", err)
	}

	config = testConfig(t, "sh", "-c", "cat; echo end")
	config.Spec.Name, config.Spec.Stdin = "bob", true
	c = start(t, r, config)
	if s, err = c.Attach(testContext(t)); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Write([]byte("line\n")); err != nil {
		t.Fatal(err)
	}
	if err := s.CloseInput(); err != nil {
		t.Fatal(err)
	}
	if code := wait(t, c); code != 0 {
		t.Errorf("ended with %d", code)
	}
	if out, _ := logs(t, c); out != "line\nend\n" {
		t.Errorf("said %q", out)
	}
}

// Interrupting a session again and again, in the middle of input and output,
// neither loses nor repeats a byte.
func TestInterruption(t *testing.T) {
	ctx := testContext(t)
	r := openRuntime(t, testOptions(t))
	c := start(t, r, testConfig(t, "sleep", "1000"))
	input := make([]byte, 4<<20)
	for i := range input {
		input[i] = byte(i >> 12)
	}
	s := startExec(t, c, ExecConfig{Command: []string{"cat"}, Stdin: true})
	id := s.ID()
	var output []byte
	accepted := 0
	for round := 0; ; round++ {
		writing := make(chan struct{})
		go func() {
			defer close(writing)
			// The error, if the session is interrupted, is the reader's too.
			if n, err := s.Write(input[accepted:]); err == nil && accepted+n == len(input) {
				_ = s.CloseInput()
			}
		}()
		received, exited, interrupted := 0, false, make(chan error, 1)
		for !exited {
			e, err := s.Read()
			if errors.Is(err, ErrInterrupted) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			output = append(output, e.Stdout...)
			exited = e.Exited
			before := received
			received += len(e.Stdout)
			if limit := 300 << 10; before <= limit && received > limit && round < 8 {
				// While both directions are busy.
				go func() { interrupted <- c.CloseSessions(ctx) }()
			}
		}
		<-writing
		accepted += int(s.Accepted())
		s.Close()
		if exited {
			break
		}
		if err := <-interrupted; err != nil {
			t.Fatal(err)
		}
		c.OpenSessions()
		var err error
		if s, err = c.Session(ctx, id); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}
	if accepted != len(input) || !bytes.Equal(output, input) {
		t.Errorf("%d bytes of input were accepted, %d came back, of %d", accepted, len(output), len(input))
	}
}

// A command waits for a client that does not read, and can be left alone.
func TestSlowClient(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	c := start(t, r, testConfig(t, "sleep", "1000"))
	s := startExec(t, c, ExecConfig{Command: []string{"sh", "-c", "seq 1 200000; touch /tmp/done"}})
	busy := startExec(t, c, ExecConfig{Command: []string{"sh", "-c", "test -e /tmp/done || echo waits"}})
	if _, out, _ := sessionOutput(t, busy); out != "waits\n" {
		t.Errorf("said %q", out)
	}
	code, out, _ := sessionOutput(t, s)
	if code != 0 || len(out) != 1288895 || !strings.HasSuffix(out, "\n200000\n") {
		t.Errorf("ended with %d after %d bytes", code, len(out))
	}
}

func TestLongCommand(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	c := start(t, r, testConfig(t, "sleep", "1000"))
	arg := strings.Repeat("x", 120<<10)
	code, out, stderr := sessionOutput(t, startExec(t, c, ExecConfig{Command: []string{"sh", "-c", "echo ${#1} ${#2}", "sh", arg, "y"}}))
	if code != 0 || out != "122880 1\n" {
		t.Errorf("got %d, %q, %q", code, out, stderr)
	}
	_, err := c.Exec(testContext(t), ExecConfig{Command: []string{"true", arg, arg}})
	if !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	for _, command := range [][]string{nil, {""}, {"a\x00b"}} {
		if _, err := c.Exec(testContext(t), ExecConfig{Command: command}); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%q: got %v", command, err)
		}
	}
	if _, err := c.Session(testContext(t), "../main"); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Session(testContext(t), "abcdef"); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

// Killing the pod ends its sessions for whoever reads them.
func TestSessionOfKilledPod(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	c := start(t, r, testConfig(t, "sleep", "1000"))
	s := startExec(t, c, ExecConfig{Command: []string{"sleep", "1000"}})
	defer s.Close()
	if err := c.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if e, err := s.Read(); !errors.Is(err, ErrInterrupted) {
		t.Errorf("got %+v, %v", e, err)
	}
	wait(t, c)
	if _, err := c.Exec(testContext(t), ExecConfig{Command: []string{"true"}}); !errors.Is(err, pod.ErrPhase) {
		t.Errorf("got %v", err)
	}
}
