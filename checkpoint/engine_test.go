package checkpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCheckVersion(t *testing.T) {
	for _, c := range []struct {
		version int
		kernel  string
		ok      bool
	}{
		{40201, "6.18.44", true},
		{40200, "6.16.0-rc1", true},
		{40101, "6.16.0", false},
		{40101, "7.0", false},
		{40101, "6.12.43+deb13-amd64", true},
		{40100, "5.15.0", true},
		{31701, "6.1.0", false},
		{40101, "strange", false}, // counts as new
	} {
		err := checkVersion(c.version, c.kernel)
		if (err == nil) != c.ok || err != nil && !errors.Is(err, ErrTooOld) {
			t.Errorf("CRIU %d on %s: %v", c.version, c.kernel, err)
		}
	}
	if err := checkVersion(31701, "6.18.0"); !strings.Contains(err.Error(), "3.17.1") || !strings.Contains(err.Error(), "4.2.0") {
		t.Errorf("error does not say what is there and what is needed: %v", err)
	}
}

func TestOpenWithoutCRIU(t *testing.T) {
	if _, err := Open(Options{CRIUPath: filepath.Join(t.TempDir(), "criu")}); !errors.Is(err, ErrNoCRIU) {
		t.Errorf("error is %v", err)
	}
	// A program that is something else.
	other := filepath.Join(t.TempDir(), "criu")
	if err := os.WriteFile(other, []byte("#!/bin/sh\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{CRIUPath: other}); !errors.Is(err, ErrNoCRIU) {
		t.Errorf("error is %v", err)
	}
}

func TestParseErrors(t *testing.T) {
	log := `(00.000001) Error (criu/rlimit.c:18): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted
(00.010000) Warn  (criu/sk-inet.c:1): something
(00.020000)     42: Error (criu/sk-inet.c:137): inet: Unsupported proto 262
` + strings.Repeat("x", 3*maxLogLine) + ` Error (cut.c:1): beyond the limit
(00.030000) Error (criu/cr-dump.c:1545): Dump files (pid: 42) failed with -1
(00.040000) Error (criu/cr-dump.c:2128): Dumping FAILED.
no newline at the end`
	lines, err := parseErrors(strings.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"Error (criu/sk-inet.c:137): inet: Unsupported proto 262",
		"Error (criu/cr-dump.c:1545): Dump files (pid: 42) failed with -1",
	}
	if strings.Join(lines, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q", lines)
	}
	var long strings.Builder
	for i := range 20 {
		fmt.Fprintf(&long, "Error (a:1): line %d\nError (a:1): line %[1]d\n", i)
	}
	lines, err = parseErrors(strings.NewReader(long.String()))
	if err != nil || len(lines) != maxErrorLines || lines[maxErrorLines-1] != "Error (a:1): line 19" || lines[0] != "Error (a:1): line 12" {
		t.Errorf("got %q, %v", lines, err)
	}
}

func TestFreezerNeedsACgroup(t *testing.T) {
	if _, err := NewFreezer(t.TempDir()); err == nil {
		t.Error("no error for a directory that is no cgroup")
	}
}
