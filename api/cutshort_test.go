package api

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect"

	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/pod"
)

// cutShort is a daemon that dies while it answers.
type cutShort struct {
	poddv1connect.UnimplementedMoveServiceHandler
}

func (cutShort) MovePod(_ context.Context, _ *connect.Request[poddv1.MovePodRequest], stream *connect.ServerStream[poddv1.MovePodResponse]) error {
	if err := stream.Send(&poddv1.MovePodResponse{Stage: string(pod.StagePreflight)}); err != nil {
		return err
	}
	panic(http.ErrAbortHandler) // the connection breaks off without an end
}

// TestAnswerCutShort: an answer without an end is nothing that the caller did
// wrong, over HTTP/1.1 and HTTP/2.
func TestAnswerCutShort(t *testing.T) {
	for _, http2 := range []bool{false, true} {
		mux := http.NewServeMux()
		mux.Handle(poddv1connect.NewMoveServiceHandler(cutShort{}, HandlerOptions()))
		server := httptest.NewUnstartedServer(mux)
		server.EnableHTTP2 = http2
		server.StartTLS()
		t.Cleanup(server.Close)
		client := poddv1connect.NewMoveServiceClient(server.Client(), server.URL, ClientOptions())
		stream, err := client.MovePod(t.Context(), connect.NewRequest(&poddv1.MovePodRequest{Pod: "p", Target: "b"}))
		if err != nil {
			t.Fatal(err)
		}
		for stream.Receive() {
		}
		if err := stream.Err(); !errors.Is(err, pod.ErrUnavailable) || errors.Is(err, pod.ErrInvalid) {
			t.Errorf("HTTP/2 %v: %v", http2, err)
		}
		if err := stream.Close(); err != nil && !errors.Is(err, pod.ErrUnavailable) {
			t.Logf("closing the stream: %v", err)
		}
	}
}
