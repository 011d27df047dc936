package cli_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"

	"podd/cli"
)

// podctl runs a command in this process and returns what it printed.
func podctl(t *testing.T, socket string, stdin io.Reader, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	var out, errOut bytes.Buffer
	code = cli.Run(context.Background(), append([]string{"--socket", socket}, args...), stdin, &out, &errOut)
	return code, out.String(), errOut.String()
}

// lines makes n bytes of input of which every line is different.
func lines(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "line %d\n", i)
	}
	return b.String()
}

// A pod that moves many times while its input streams in gets every byte once,
// and podctl prints every byte once.
func TestForegroundRunSurvivesMoves(t *testing.T) {
	s, socket := newServer(t)
	input := lines(1 << 20)
	code, stdout, stderr := podctl(t, socket, strings.NewReader(input), "run", "-i", "--name", "p", "hopcat")
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, standard error %q", code, stderr)
	}
	if stdout != input {
		t.Fatalf("got %d bytes back, want %d equal ones", len(stdout), len(input))
	}
	p, err := s.get("p")
	if err != nil {
		t.Fatal(err)
	}
	if n := p.main.hops.count(); n < 5 {
		t.Fatalf("the pod moved %d times; this test is about moves", n)
	}
}

func TestExecSurvivesMoves(t *testing.T) {
	s, socket := newServer(t)
	if code, _, stderr := podctl(t, socket, nil, "run", "-d", "--name", "p", "sleep"); code != 0 {
		t.Fatal(stderr)
	}
	input := lines(1 << 20)
	code, stdout, stderr := podctl(t, socket, strings.NewReader(input), "exec", "-i", "p", "hopcat")
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, standard error %q", code, stderr)
	}
	if stdout != input {
		t.Fatalf("got %d bytes back, want %d equal ones", len(stdout), len(input))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sessions) != 1 {
		t.Fatalf("the command was started %d times, want once", len(s.sessions))
	}
}

// Input that went into a stream which broke before it reached the command is
// sent again.
func TestExecSurvivesRefusals(t *testing.T) {
	s, socket := newServer(t)
	if code, _, stderr := podctl(t, socket, nil, "run", "-d", "--name", "p", "sleep"); code != 0 {
		t.Fatal(stderr)
	}
	s.mu.Lock()
	s.refusals = 3
	s.mu.Unlock()
	input := lines(1 << 20)
	code, stdout, stderr := podctl(t, socket, strings.NewReader(input), "exec", "-i", "p", "hopcat")
	if code != 0 || stderr != "" {
		t.Fatalf("exit code %d, standard error %q", code, stderr)
	}
	if stdout != input {
		t.Errorf("got %d bytes back, want %d equal ones", len(stdout), len(input))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refusals != 0 {
		t.Errorf("%d streams were not refused; this test is about those that are", s.refusals)
	}
}

// Calls carry the route that lets any podd pass them on, streams too.
func TestCallsAreRouted(t *testing.T) {
	s, socket := newServer(t)
	podctl(t, socket, nil, "run", "--name", "p", "--host", "b", "echo")
	s.mu.Lock()
	defer s.mu.Unlock()
	if want := "[host/b pod/p]"; fmt.Sprint(s.routes) != want {
		t.Errorf("routes %v, want %s", s.routes, want)
	}
}

// endless is standard input that never ends and never has anything.
type endless struct{ ended chan struct{} }

func (e endless) Read([]byte) (int, error) {
	<-e.ended
	return 0, io.EOF
}

func TestCommandEndsWhileInputWaits(t *testing.T) {
	_, socket := newServer(t)
	in := endless{make(chan struct{})}
	defer close(in.ended)
	code, stdout, _ := podctl(t, socket, in, "run", "-i", "--name", "p", "echo", "done")
	if code != 0 || stdout != "done\n" {
		t.Errorf("exit code %d, output %q", code, stdout)
	}
}

// failingWriter is standard output whose reader has gone.
type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestOutputThatCannotBeWritten(t *testing.T) {
	_, socket := newServer(t)
	var stderr bytes.Buffer
	code := cli.Run(context.Background(), []string{"--socket", socket, "run", "--name", "p", "count", "100"}, nil, failingWriter{}, &stderr)
	if code != 125 || !strings.Contains(stderr.String(), "writing to standard output: io: read/write on closed pipe") {
		t.Errorf("exit code %d, standard error %q", code, stderr.String())
	}
}
