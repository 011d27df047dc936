package podd

import (
	"errors"
	"net/http/httptest"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/directory"
	"podd/pod"
)

// serveMoves serves the calls about moves, on a directory, and returns a client.
func serveMoves(t *testing.T, dir *directory.Directory) poddv1connect.MoveServiceClient {
	t.Helper()
	d, _ := testDaemon(t, "c", dir)
	_, handler := poddv1connect.NewMoveServiceHandler(&moveService{d: d}, api.HandlerOptions())
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return poddv1connect.NewMoveServiceClient(server.Client(), server.URL, api.ClientOptions())
}

// TestCancelMove is answered when the source has undone the move.
func TestCancelMove(t *testing.T) {
	dir := newDirectory(t)
	client := serveMoves(t, dir)
	cancel := func(id, reason string) (*poddv1.Move, error) {
		r, err := client.CancelMove(t.Context(), connect.NewRequest(&poddv1.CancelMoveRequest{Id: id, Reason: reason}))
		if err != nil {
			return nil, err
		}
		return r.Msg.GetMove(), nil
	}
	m := beginMove(t, dir, "alice")
	undone := make(chan error, 1)
	go func() {
		for now := range dir.WatchMove(t.Context(), m.ID) {
			if now.Undoing() {
				break
			}
		}
		undone <- dir.AbortMove(t.Context(), m.ID, pod.StageDump, errors.New("as told"))
	}()
	got, err := cancel(m.ID, "enough")
	if err != nil || got.GetState() != string(pod.MoveAborted) || got.GetError() != "cancelled: enough" || got.GetFailedStage() != string(pod.StageDump) || got.GetEndedAt() == nil {
		t.Errorf("the answer is %v, %v", got, err)
	}
	if err := <-undone; err != nil {
		t.Error(err)
	}
	if _, err := cancel(m.ID, ""); !errors.Is(err, pod.ErrConflict) || !strings.Contains(err.Error(), "was undone before: cancelled: enough") {
		t.Errorf("again: %v", err)
	}
	committed := beginMove(t, dir, "bob")
	if err := dir.CommitMove(t.Context(), committed.ID); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second when the move is done
		if _, err := cancel(committed.ID, ""); !errors.Is(err, pod.ErrConflict) || !strings.Contains(err.Error(), "too late") || !strings.Contains(err.Error(), "pod bob is on host b") {
			t.Errorf("too late: %v", err)
		}
		if err := dir.FinishMove(t.Context(), committed.ID, nil); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := cancel("none", ""); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
}

func TestWaitMove(t *testing.T) {
	dir := newDirectory(t)
	client := serveMoves(t, dir)
	wait := func(id string) *connect.ServerStreamForClient[poddv1.WaitMoveResponse] {
		t.Helper()
		stream, err := client.WaitMove(t.Context(), connect.NewRequest(&poddv1.WaitMoveRequest{Id: id}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { stream.Close() })
		return stream
	}
	m := beginMove(t, dir, "alice")
	stream := wait(m.ID)
	var stages []string
	next := func() *poddv1.WaitMoveResponse {
		t.Helper()
		if !stream.Receive() {
			t.Fatalf("the stream ended after %v: %v", stages, stream.Err())
		}
		stages = append(stages, stream.Msg().GetStage())
		return stream.Msg()
	}
	for _, stage := range []pod.Stage{pod.StagePreflight, pod.StagePresync, pod.StageHold} {
		if err := dir.SetMoveStage(t.Context(), m.ID, stage); err != nil {
			t.Fatal(err)
		}
		if got := next(); got.GetStage() != string(stage) || got.GetMove() != nil || got.GetId() != m.ID {
			t.Errorf("got %v, want stage %s", got, stage)
		}
	}
	// What is the same stage is no news.
	if err := dir.SetHeld(t.Context(), m.ID, true); err != nil {
		t.Fatal(err)
	}
	if err := dir.CommitMove(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	if got := next(); got.GetStage() != string(pod.StageCommit) || got.GetMove() != nil {
		t.Errorf("got %v, want that it is committed", got)
	}
	if err := dir.FinishMove(t.Context(), m.ID, &pod.Receipt{Connections: 7}); err != nil {
		t.Fatal(err)
	}
	if got := next(); got.GetMove().GetReceipt().GetConnections() != 7 {
		t.Errorf("got %v, want the receipt", got)
	}
	if stream.Receive() || stream.Err() != nil {
		t.Errorf("after the end: %v, %v", stream.Msg(), stream.Err())
	}
	// One that is over is told at once.
	stream = wait(m.ID)
	if got := next(); got.GetMove().GetState() != string(pod.MoveDone) {
		t.Errorf("got %v, want that it is done", got)
	}
	stream = wait("none")
	if stream.Receive() || !errors.Is(stream.Err(), pod.ErrNotFound) {
		t.Errorf("unknown: %v", stream.Err())
	}
}
