package api

import (
	"errors"
	"fmt"
	"strings"

	"connectrpc.com/connect"

	"podd/pod"
)

// codes pairs each sentinel with its status code. Order matters only in that
// an error wrapping several takes the first.
var codes = []struct {
	sentinel error
	code     connect.Code
}{
	{pod.ErrInvalid, connect.CodeInvalidArgument},
	{pod.ErrNotFound, connect.CodeNotFound},
	{pod.ErrExists, connect.CodeAlreadyExists},
	{pod.ErrConflict, connect.CodeAborted},
	{pod.ErrBlocked, connect.CodeFailedPrecondition},
	{pod.ErrPhase, connect.CodeOutOfRange},
	{pod.ErrDenied, connect.CodePermissionDenied},
	{pod.ErrUnknownCaller, connect.CodeUnauthenticated},
	{pod.ErrUntrusted, connect.CodeDataLoss},
	{pod.ErrUnavailable, connect.CodeUnavailable},
	{pod.ErrExhausted, connect.CodeResourceExhausted},
}

// ErrorToConnect gives err the status code of the sentinel it wraps. An error
// that has a code already keeps it.
func ErrorToConnect(err error) error {
	if err == nil {
		return nil
	}
	var coded *connect.Error
	if errors.As(err, &coded) {
		return err
	}
	for _, c := range codes {
		if errors.Is(err, c.sentinel) {
			return connect.NewError(c.code, err)
		}
	}
	return connect.NewError(connect.CodeUnknown, err)
}

// remoteError is an error that came over the network: the other side's words,
// and the sentinel its code stands for, or else its cause.
type remoteError struct {
	message  string
	sentinel error
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.sentinel }

// ErrorFromConnect is the reverse of ErrorToConnect: the result has the other
// side's text and matches the sentinel by errors.Is. One that arose on this side
// still matches its cause, such as the io.EOF at the end of a stream.
func ErrorFromConnect(err error) error {
	var coded *connect.Error
	if err == nil || !errors.As(err, &coded) {
		return err
	}
	if !connect.IsWireError(err) && isCutShort(coded.Message()) {
		return fmt.Errorf("%w: the daemon went away in the middle of its answer (%s)", pod.ErrUnavailable, coded.Message())
	}
	for _, c := range codes {
		if coded.Code() != c.code {
			continue
		}
		if !connect.IsWireError(err) && c.sentinel == pod.ErrUnavailable {
			return fmt.Errorf("%w: %s", pod.ErrUnavailable, coded.Message())
		}
		return &remoteError{message: coded.Message(), sentinel: c.sentinel}
	}
	return &remoteError{message: coded.Message(), sentinel: coded.Unwrap()}
}

// isCutShort tells by the text of an error that arose on this side whether an
// answer ended before its end: the peer, or one that passes calls on to it, was
// killed. Connect gives these the code of a bad request, and HTTP/2 none at all.
func isCutShort(message string) bool {
	return strings.HasPrefix(message, "protocol error: incomplete envelope") || strings.HasPrefix(message, "stream error: stream ID")
}
