package podd

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	poddv1 "podd/api/podd/v1"
	"podd/daemon"
	"podd/directory"
	"podd/pagesync"
	"podd/pod"
)

func testDaemon(t *testing.T, name string, dir *directory.Directory) (d *Daemon, stop context.CancelFunc) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	d = &Daemon{settings: settings{Config: Config{Name: name}}, log: discard(), ctx: ctx, dir: &daemon.Directory{Directory: dir}}
	t.Cleanup(func() { stop(); d.tasks.Wait() })
	return d, stop
}

// TestSettle asks how moves were decided, also when podd is to stop already.
func TestSettle(t *testing.T) {
	dir := newDirectory(t)
	d, stop := testDaemon(t, "a", dir)
	running, committed := beginMove(t, dir, "running"), beginMove(t, dir, "committed")
	if err := dir.CommitMove(t.Context(), committed.ID); err != nil {
		t.Fatal(err)
	}
	// Moves that the journal has forgotten are told by the pods' bindings.
	forgotten, old := *running, *committed
	forgotten.ID, old.ID = "forgotten", "old"
	gone := forgotten
	gone.Pod = "gone"
	stop()
	for name, test := range map[string]struct {
		move      *pod.Move
		committed bool
	}{
		"running": {running, false}, "committed": {committed, true},
		"forgotten": {&forgotten, false}, "old": {&old, true}, "gone": {&gone, false},
	} {
		got, err := d.settleMove(d.log, test.move, dir.AbortMove, pod.StageDump, errors.New("for the test"))
		if err != nil || got != test.committed {
			t.Errorf("%s: committed %v, %v; want %v", name, got, err, test.committed)
		}
	}
	if m, err := dir.Move(t.Context(), running.ID); err != nil || m.State != pod.MoveAborted {
		t.Errorf("the move is %+v, %v", m, err)
	}
}

// TestAbortUnknown finishes a move that was opened without anybody knowing.
func TestAbortUnknown(t *testing.T) {
	dir := newDirectory(t)
	d, _ := testDaemon(t, "a", dir)
	m := beginMove(t, dir, "alice")
	d.abortUnknown(t.Context(), m.ID, errors.New("no reply"))
	p, err := dir.Pod(t.Context(), "alice")
	if err != nil || p.Phase != pod.PhaseRunning || p.Move != "" {
		t.Errorf("the pod is %+v, %v", p, err)
	}
	if m, err := dir.Move(t.Context(), m.ID); err != nil || m.State != pod.MoveAborted || m.Error != "no reply" {
		t.Errorf("the move is %+v, %v", m, err)
	}
}

// TestGuard waits for a host that says nothing while the move is aborted
// behind its back, or podd is to stop.
func TestGuard(t *testing.T) {
	dir := newDirectory(t)
	for name, test := range map[string]struct {
		end  func(move *pod.Move, stop context.CancelFunc) error
		want string
	}{
		"aborted": {func(move *pod.Move, _ context.CancelFunc) error {
			return dir.CancelMove(t.Context(), move.ID, pod.StageDump, errors.New("for the test"))
		}, "for the test"},
		"stopping": {func(_ *pod.Move, stop context.CancelFunc) error { stop(); return nil }, "podd on host a is stopping"},
	} {
		t.Run(name, func(t *testing.T) {
			over := make(chan struct{})
			s := serveTransfers(t, func(*transferConn) { <-over })
			defer close(over)
			conn := dialTest(t, s)
			d, stop := testDaemon(t, "a", dir)
			move := beginMove(t, dir, name)
			dismiss := d.guardMove(move, "b", conn.abandon)
			defer dismiss()
			if err := test.end(move, stop); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.expect(); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q", err, test.want)
			}
		})
	}
}

// TestReason finds what the target said before it hung up on a source that was
// sending.
func TestReason(t *testing.T) {
	s := serveTransfers(t, func(conn *transferConn) {
		report := &poddv1.TargetMessage{Error: &poddv1.TargetError{Stage: string(pod.StageDump), Message: "host b: the disk is full"}}
		if err := conn.send(report); err != nil {
			t.Error(err)
		}
	})
	m := &sourceMove{conn: dialTest(t, s)}
	var err error
	for page := make([]byte, 1<<20); err == nil; {
		_, err = m.conn.Write(page)
	}
	if got := m.reason(err); got.Error() != "host b: the disk is full" {
		t.Errorf("got %v for %v", got, err)
	}
	m.conn = dialTest(t, s)
	if got := m.reason(fmt.Errorf("dumping the pod: %w", pagesync.ErrLost)); got.Error() != "host b: the disk is full" {
		t.Errorf("got %v when the pager was lost", got)
	}
	if own := errors.New("CRIU failed"); m.reason(own) != own {
		t.Error("another error was not kept")
	}
}
