package cli

import (
	"connectrpc.com/connect"

	poddv1 "podd/api/podd/v1"
)

// message is what podd says on an exec or attach stream.
type message struct {
	session        string
	stdout, stderr []byte
	position       *poddv1.OutputPosition
	exited         bool
	exitCode       int
	// moved says that the pod leaves; accepted bytes of input arrived.
	moved    bool
	accepted uint64
}

// duplex is an exec or attach stream. One goroutine may send while another
// receives.
type duplex interface {
	sendStdin([]byte) error
	sendEndOfInput() error
	sendWindow(*poddv1.WindowSize) error
	receive() (message, error)
	// closeRequest ends the sending side. It may be called at any time.
	closeRequest()
	close()
}

type execStream struct {
	stream *connect.BidiStreamForClient[poddv1.ExecRequest, poddv1.ExecResponse]
}

func (s execStream) sendStdin(b []byte) error {
	return s.stream.Send(&poddv1.ExecRequest{Request: &poddv1.ExecRequest_Stdin{Stdin: b}})
}

func (s execStream) sendEndOfInput() error {
	return s.stream.Send(&poddv1.ExecRequest{Request: &poddv1.ExecRequest_EndOfInput{EndOfInput: true}})
}

func (s execStream) sendWindow(w *poddv1.WindowSize) error {
	return s.stream.Send(&poddv1.ExecRequest{Request: &poddv1.ExecRequest_Window{Window: w}})
}

func (s execStream) receive() (message, error) {
	response, err := s.stream.Receive()
	if err != nil {
		return message{}, err
	}
	_, exited := response.GetResponse().(*poddv1.ExecResponse_ExitCode)
	return message{
		session: response.GetSession(), stdout: response.GetStdout(), stderr: response.GetStderr(),
		exited: exited, exitCode: int(response.GetExitCode()), moved: response.GetMoved(), accepted: response.GetStdinAccepted(),
	}, nil
}

// The stream is at its end or abandoned when it is closed: errors mean nothing.

func (s execStream) closeRequest() { _ = s.stream.CloseRequest() }

func (s execStream) close() {
	s.closeRequest()
	_ = s.stream.CloseResponse()
}

type attachStream struct {
	stream *connect.BidiStreamForClient[poddv1.AttachRequest, poddv1.AttachResponse]
}

func (s attachStream) sendStdin(b []byte) error {
	return s.stream.Send(&poddv1.AttachRequest{Request: &poddv1.AttachRequest_Stdin{Stdin: b}})
}

func (s attachStream) sendEndOfInput() error {
	return s.stream.Send(&poddv1.AttachRequest{Request: &poddv1.AttachRequest_EndOfInput{EndOfInput: true}})
}

func (s attachStream) sendWindow(w *poddv1.WindowSize) error {
	return s.stream.Send(&poddv1.AttachRequest{Request: &poddv1.AttachRequest_Window{Window: w}})
}

func (s attachStream) receive() (message, error) {
	response, err := s.stream.Receive()
	if err != nil {
		return message{}, err
	}
	_, exited := response.GetResponse().(*poddv1.AttachResponse_ExitCode)
	return message{
		stdout: response.GetStdout(), stderr: response.GetStderr(), position: response.GetPosition(),
		exited: exited, exitCode: int(response.GetExitCode()), moved: response.GetMoved(), accepted: response.GetStdinAccepted(),
	}, nil
}

func (s attachStream) closeRequest() { _ = s.stream.CloseRequest() }

func (s attachStream) close() {
	s.closeRequest()
	_ = s.stream.CloseResponse()
}
