package workload

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// runner is what all clients have in common.
type runner interface {
	Run(context.Context) error
	Started() <-chan struct{}
	Stop()
}

// start runs a client and waits for its first sign of life. The result ends it
// and returns what Run did.
func start(t *testing.T, r runner) (stop func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	select {
	case <-r.Started():
	case err := <-done:
		t.Fatalf("Run ended at once: %v", err)
	}
	return func() error {
		r.Stop()
		return <-done
	}
}

// eventually waits until condition holds.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited too long for %s", what)
		}
	}
}

func TestSilence(t *testing.T) {
	s := newSilence()
	if s.Longest() != 0 || s.Lap() != 0 {
		t.Error("silence before the first sign of life counts")
	}
	s.mark()
	<-s.Started()
	eventually(t, "a silence", func() bool { return s.Longest() > 20*time.Millisecond })
	s.mark()
	if first := s.Lap(); first < 20*time.Millisecond {
		t.Errorf("lap is %v", first)
	}
	s.mark()
	if s.Longest() < 20*time.Millisecond {
		t.Errorf("longest is %v after a lap", s.Longest())
	}
}
