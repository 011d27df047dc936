package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"connectrpc.com/connect"

	"podd/pod"
)

func TestErrorsCrossTheNetwork(t *testing.T) {
	for _, sentinel := range []error{
		pod.ErrInvalid, pod.ErrNotFound, pod.ErrExists, pod.ErrConflict, pod.ErrBlocked, pod.ErrPhase, pod.ErrUnavailable, pod.ErrExhausted,
	} {
		sent := fmt.Errorf("doing something: %w", sentinel)
		got := ErrorFromConnect(ErrorToConnect(sent))
		if !errors.Is(got, sentinel) {
			t.Errorf("%q arrives as %q, which is not %q", sent, got, sentinel)
		}
	}
	if got := ErrorFromConnect(ErrorToConnect(errors.New("bad luck"))); got.Error() != "bad luck" {
		t.Errorf("an error without a sentinel arrives as %q", got)
	}
	if ErrorFromConnect(nil) != nil || ErrorToConnect(nil) != nil {
		t.Error("no error arrives as one")
	}
}

// The end of a stream and the end of a context come from this side, with a code.
func TestLocalCausesStay(t *testing.T) {
	for code, cause := range map[connect.Code]error{
		connect.CodeUnknown: io.EOF, connect.CodeCanceled: context.Canceled, connect.CodeDeadlineExceeded: context.DeadlineExceeded,
	} {
		err := connect.NewError(code, fmt.Errorf("final message has protocol-specific flags: %w", cause))
		if got := ErrorFromConnect(err); !errors.Is(got, cause) {
			t.Errorf("%v becomes %q, which is not %q", err, got, cause)
		}
	}
}
