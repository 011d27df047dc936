//go:build root

package namespace

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
)

// collect reads a log with options into two strings.
func collect(t *testing.T, c *Container, opts LogOptions) (stdout, stderr string, end Position) {
	t.Helper()
	var out, errs bytes.Buffer
	err := c.Logs(testContext(t), opts, func(o Output) error {
		out.Write(o.Stdout)
		errs.Write(o.Stderr)
		end = o.Position
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), errs.String(), end
}

func TestLogs(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	config := testConfig(t, "sh", "-c", "echo 1; echo 2; echo e1 >&2; read x; echo 3; printf 4; echo e2 >&2")
	config.Spec.Stdin = true
	c := start(t, r, config)
	eventually(t, "the pod has spoken", func() bool { out, errs := logs(t, c); return out == "1\n2\n" && errs == "e1\n" })

	// A follower sees what comes and ends with the pod.
	type said struct {
		out, errs string
		end       Position
	}
	first, followed := make(chan struct{}), make(chan said, 1)
	go func() {
		var s said
		once := false
		err := c.Logs(testContext(t), LogOptions{From: &Position{Stdout: 2, Stderr: 0}, Follow: true}, func(o Output) error {
			s.out, s.errs, s.end = s.out+string(o.Stdout), s.errs+string(o.Stderr), o.Position
			if !once && s.out == "2\n" && s.errs == "e1\n" {
				once = true
				close(first)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		followed <- s
	}()
	<-first
	s, err := c.Attach(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Write([]byte("go\n")); err != nil {
		t.Fatal(err)
	}
	want := said{"2\n3\n4", "e1\ne2\n", Position{7, 6}}
	if got := <-followed; got != want {
		t.Errorf("followed %+v, want %+v", got, want)
	}
	for i, test := range []struct {
		opts      LogOptions
		out, errs string
	}{
		{LogOptions{Tail: -1}, "1\n2\n3\n4", "e1\ne2\n"},
		{LogOptions{Tail: 0}, "", ""},
		{LogOptions{Tail: 1}, "4", "e2\n"},
		{LogOptions{Tail: 2}, "3\n4", "e1\ne2\n"},
		{LogOptions{Tail: 100}, "1\n2\n3\n4", "e1\ne2\n"},
		{LogOptions{From: &Position{4, 6}}, "3\n4", ""},
		{LogOptions{From: &Position{100, 100}, Follow: true}, "", ""},
	} {
		if out, errs, _ := collect(t, c, test.opts); out != test.out || errs != test.errs {
			t.Errorf("%d: got %q, %q", i, out, errs)
		}
	}
	stop := errors.New("stop")
	if err := c.Logs(testContext(t), LogOptions{Tail: -1}, func(Output) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("got %v", err)
	}
}

// A log is bounded, positions stay true, and a follower that keeps up misses
// nothing when a segment ends.
func TestLogRotation(t *testing.T) {
	opts := testOptions(t)
	opts.LogSegment = 4096
	r := openRuntime(t, opts)
	config := testConfig(t, "sh", "-c", "read x; seq 100000 199999; read x")
	config.Spec.Stdin = true
	c := start(t, r, config)
	s, err := c.Attach(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := s.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	const total = 700_000
	eventually(t, "all is written", func() bool { _, _, end := collect(t, c, LogOptions{Tail: 1}); return end.Stdout == total })
	out, _, _ := collect(t, c, LogOptions{Tail: -1})
	if len(out) < LogSegmentsKept*3072 || len(out) > (LogSegmentsKept+1)*4096 || !strings.HasSuffix(out, "199998\n199999\n") {
		t.Errorf("%d bytes are kept: ...%q", len(out), out[max(0, len(out)-20):])
	}
	if out, _, _ := collect(t, c, LogOptions{From: &Position{Stdout: total - 14}}); out != "199998\n199999\n" {
		t.Errorf("at a position: %q", out)
	}
	if out, _, _ := collect(t, c, LogOptions{From: &Position{Stdout: 7}}); !strings.HasSuffix(out, "199999\n") || strings.HasPrefix(out, "100001") {
		t.Errorf("at a position that is not kept: %q...", out[:20])
	}
	ctx, cancel := context.WithCancel(testContext(t))
	err = c.Logs(ctx, LogOptions{Tail: -1, Follow: true}, func(Output) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("a follower whose context ends: %v", err)
	}
}
