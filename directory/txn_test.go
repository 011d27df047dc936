package directory

import (
	"context"
	"errors"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"podd/pod"
)

// TestUnavailable sorts what etcd and gRPC answer: what another attempt, or
// another member, may answer better is unavailability.
func TestUnavailable(t *testing.T) {
	d := &Directory{endpoints: "https://10.0.0.1:2379"}
	for _, c := range []struct {
		err  error
		want bool
	}{
		{context.DeadlineExceeded, true},
		{rpctypes.ErrNoLeader, true},
		{rpctypes.ErrTimeout, true},
		{status.Error(codes.Unavailable, "connection refused"), true},
		{status.Error(codes.Internal, "server closed the stream without sending trailers"), true},
		{status.Error(codes.Internal, "grpc: error unmarshalling request"), false},
		{status.Error(codes.PermissionDenied, "no"), false},
		{rpctypes.ErrNoSpace, false},
		{errors.New("anything"), false},
	} {
		if got := errors.Is(d.explain(t.Context(), "reading", c.err), pod.ErrUnavailable); got != c.want {
			t.Errorf("%v: unavailable is %t, want %t", c.err, got, c.want)
		}
	}
}
