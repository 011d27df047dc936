package workload

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// sinkProgram is a kitchensink process with its output.
type sinkProgram struct {
	dir    string
	cmd    *exec.Cmd
	lines  *bufio.Scanner
	output bytes.Buffer
	t      *testing.T
}

func buildSink(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "kitchensink")
	if err := BuildKitchenSink(t.Context(), program); err != nil {
		t.Fatal(err)
	}
	return program
}

func startSink(t *testing.T, program, dir string, args ...string) *sinkProgram {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, program, append([]string{"-d", dir}, args...)...)
	out, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	// Its orphans may keep the output open.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &sinkProgram{dir: dir, cmd: cmd, t: t}
	s.lines = bufio.NewScanner(io.TeeReader(out, &s.output))
	exited := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		w.Close()
		exited <- err
	}()
	t.Cleanup(func() {
		cancel()
		io.Copy(io.Discard, out)
		<-exited
	})
	return s
}

// waitFor returns the next line that begins with prefix.
func (s *sinkProgram) waitFor(prefix string) string {
	s.t.Helper()
	for s.lines.Scan() {
		if strings.HasPrefix(s.lines.Text(), prefix) {
			return s.lines.Text()
		}
	}
	s.t.Fatalf("kitchensink ended before it printed %q:\n%s", prefix, s.output.String())
	return ""
}

func (s *sinkProgram) trigger(name string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), nil, 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *sinkProgram) report() SinkReport {
	s.t.Helper()
	for s.lines.Scan() {
	}
	r, err := ParseSinkReport(strings.NewReader(s.output.String()))
	if err != nil {
		s.t.Fatalf("%v:\n%s", err, s.output.String())
	}
	return r
}

func listStates(t *testing.T, program, list string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program, list).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(out))
}

// TestKitchenSink runs every state without a move: what fails here is the
// sink's own fault.
func TestKitchenSink(t *testing.T) {
	program := buildSink(t)
	dir := t.TempDir()
	sink := startSink(t, program, dir, "-p", "0", "run")
	port := strings.TrimPrefix(sink.waitFor("listening "), "listening ")
	peer := startSink(t, program, dir, "peer", "127.0.0.1", port)
	peer.waitFor("ready")
	sink.waitFor("ready")
	sink.trigger("check")
	peer.trigger("check-peer")
	for name, s := range map[string]*sinkProgram{"sink": sink, "peer": peer} {
		report := s.report()
		if err := report.Err(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %d states", name, len(report.OK))
	}
	report := sink.report()
	for _, state := range listStates(t, program, "list") {
		left := "# " + state + " is left out"
		if !slices.Contains(report.OK, state) && !strings.Contains(sink.output.String(), left) {
			t.Errorf("state %s was neither checked nor left out", state)
		}
	}
}

// TestKitchenSinkLost sets up, one by one, what a checkpoint loses: without one
// it must be found.
func TestKitchenSinkLost(t *testing.T) {
	program := buildSink(t)
	for _, state := range listStates(t, program, "list-lost") {
		t.Run(state, func(t *testing.T) {
			sink := startSink(t, program, t.TempDir(), "only", state)
			sink.waitFor("ready")
			sink.trigger("check")
			report := sink.report()
			if err := report.Err(); err != nil || !slices.Equal(report.OK, []string{state}) {
				t.Errorf("ok %v, %v", report.OK, err)
			}
		})
	}
}

func TestParseSinkReport(t *testing.T) {
	report, err := ParseSinkReport(strings.NewReader("ready\nok a\nFAIL b: it: is gone\nok c\ndone 2 ok 1 failed\n"))
	if err != nil || !slices.Equal(report.OK, []string{"a", "c"}) || report.Failed["b"] != "it: is gone" {
		t.Errorf("report %+v, %v", report, err)
	}
	if err := report.Err(); err == nil || !strings.Contains(err.Error(), "it: is gone") {
		t.Errorf("error %v", err)
	}
	for _, bad := range []string{"", "ready\nok a\n", "ready\nok a\ndone 2 ok 0 failed\n", "done x\n"} {
		if _, err := ParseSinkReport(strings.NewReader(bad)); err == nil {
			t.Errorf("no error for %q", bad)
		}
	}
	if (SinkReport{}).Err() == nil {
		t.Error("an empty report is no success")
	}
}
