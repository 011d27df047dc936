package podd

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"podd/pod"
)

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]unix.Signal{
		"TERM": unix.SIGTERM, "SIGTERM": unix.SIGTERM, "sigint": unix.SIGINT, "usr1": unix.SIGUSR1, "9": unix.SIGKILL, "64": 64,
	} {
		if got, err := parseSignal(text); err != nil || got != want {
			t.Errorf("%s: got %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "SIG", "0", "65", "-1", "TERMINATE", "9 "} {
		if got, err := parseSignal(text); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%q: got %v, %v; want ErrInvalid", text, got, err)
		}
	}
}

func TestAwaitMove(t *testing.T) {
	p := &localPod{name: "alice"}
	if err := p.awaitMove(t.Context()); err != nil {
		t.Errorf("no move is under way: %v", err)
	}
	done := make(chan struct{})
	p.moving.Store(&done)
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("the caller has gone")
	cancel(gone)
	if err := p.awaitMove(ctx); !errors.Is(err, gone) {
		t.Errorf("got %v, want the cause", err)
	}
	close(done)
	if err := p.awaitMove(t.Context()); err != nil {
		t.Errorf("the move is over: %v", err)
	}
}
