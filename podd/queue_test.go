package podd

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// bounded is a move that has begun, and what bounds it.
func boundedMove(ctx context.Context, order moveOrder) (m *sourceMove, bound context.Context, release func()) {
	m = &sourceMove{d: &Daemon{ctx: ctx}, order: order, clock: newStageClock(discard(), nil)}
	m.d.Name = "a"
	bound, release = m.bound(ctx)
	return m, bound, release
}

func TestTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, ctx, release := boundedMove(t.Context(), moveOrder{timeout: 5 * time.Second})
		defer release()
		time.Sleep(5*time.Second - 1)
		synctest.Wait()
		if ctx.Err() != nil {
			t.Errorf("it ended too early: %v", context.Cause(ctx))
		}
		time.Sleep(time.Second)
		<-ctx.Done()
		err := m.measured(m.why(errors.New("the connection was closed")))
		if want := "timeout of 5s exceeded: the move was given up after 6s"; err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	})
}

func TestMaxDowntime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, ctx, release := boundedMove(t.Context(), moveOrder{maxDowntime: 200 * time.Millisecond})
		defer release()
		time.Sleep(time.Hour) // the pod runs meanwhile
		m.frozen = time.Now()
		m.limitDowntime()
		time.Sleep(200 * time.Millisecond)
		<-ctx.Done()
		time.Sleep(13 * time.Millisecond)
		err := m.measured(m.why(errors.New("CRIU failed")))
		if want := "max-downtime of 200ms exceeded: the pod was frozen for 213ms"; err.Error() != want {
			t.Errorf("got %q, want %q", err, want)
		}
	})
}

// TestDisarm: a move that is committed has all the time it wants.
func TestDisarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, ctx, release := boundedMove(t.Context(), moveOrder{timeout: time.Second, maxDowntime: time.Second})
		defer release()
		m.frozen = time.Now()
		m.limitDowntime()
		m.disarm()
		m.limitDowntime()
		time.Sleep(time.Hour)
		synctest.Wait()
		if ctx.Err() != nil {
			t.Errorf("it was ended: %v", context.Cause(ctx))
		}
		own := errors.New("own")
		if got := m.why(own); got != own || m.why(nil) != nil || m.measured(own) != own {
			t.Errorf("an error of its own became %v", got)
		}
	})
}

// TestBound ends moves in the other ways there are; the cause is told, whatever
// fails of it.
func TestBound(t *testing.T) {
	for name, test := range map[string]struct {
		end  func(m *sourceMove, stop, abandon context.CancelCauseFunc)
		want string
	}{
		"podd stops": {func(_ *sourceMove, stop, _ context.CancelCauseFunc) { stop(nil) }, "podd on host a is stopping"},
		"abandoned":  {func(_ *sourceMove, _, abandon context.CancelCauseFunc) { abandon(errNobody) }, errNobody.Error()},
		"cancelled":  {func(m *sourceMove, _, _ context.CancelCauseFunc) { m.stop(&abortedError{"cancelled: enough"}) }, "cancelled: enough"},
	} {
		t.Run(name, func(t *testing.T) {
			daemon, stop := context.WithCancelCause(t.Context())
			defer stop(nil)
			caller, abandon := context.WithCancelCause(daemon)
			defer abandon(nil)
			m := &sourceMove{d: &Daemon{ctx: daemon}, clock: newStageClock(discard(), nil)}
			m.d.Name = "a"
			ctx, release := m.bound(caller)
			defer release()
			test.end(m, stop, abandon)
			<-ctx.Done()
			if err := m.why(errors.New("whatever")); !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

func TestOrder(t *testing.T) {
	o, err := orderOf(&poddv1.MovePodRequest{Pod: "alice", Target: "b", Timeout: durationpb.New(time.Minute), MaxDowntime: durationpb.New(time.Second), Strategy: "post-copy"})
	if want := (moveOrder{"alice", "b", pod.StrategyPostCopy, time.Minute, time.Second}); err != nil || o != want {
		t.Errorf("got %+v, %v; want %+v", o, err, want)
	}
	if o, err := orderOf(&poddv1.MovePodRequest{Pod: "alice", Target: "b"}); err != nil || o != (moveOrder{pod: "alice", target: "b", strategy: pod.StrategyAuto}) {
		t.Errorf("got %+v, %v", o, err)
	}
	for _, bad := range []*poddv1.MovePodRequest{
		{Timeout: durationpb.New(0)}, {Timeout: durationpb.New(-1)}, {MaxDowntime: durationpb.New(-time.Hour)},
		{Timeout: &durationpb.Duration{Seconds: 1 << 62}},
		{Strategy: "teleport"},
	} {
		if _, err := orderOf(bad); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%v: got %v, want that it is invalid", bad, err)
		}
	}
}
