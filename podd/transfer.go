package podd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// The conversation of a move is described in api/podd/v1/transfer.proto.
const (
	transferPath     = "/podd-transfer"
	transferProtocol = "podd-transfer"
	transferVersion  = 1
	// maxTransferMessage bounds one control message, in bytes. They are
	// small; the sections in between have bounds of their own.
	maxTransferMessage = 1 << 20
	dialTimeout        = 5 * time.Second
)

// transferConn is one end of the connection of a move.
type transferConn struct {
	net.Conn
	reader *bufio.Reader
	writer *bufio.Writer
}

func newTransferConn(conn net.Conn, reader *bufio.Reader) *transferConn {
	return &transferConn{Conn: conn, reader: reader, writer: bufio.NewWriterSize(conn, 256<<10)}
}

// Read and Write are what sections (files, pages, images) use; they share the
// buffers with the messages so that order is kept.
func (c *transferConn) Read(p []byte) (int, error)  { return c.reader.Read(p) }
func (c *transferConn) Write(p []byte) (int, error) { return c.writer.Write(p) }

func (c *transferConn) send(message proto.Message) error {
	if _, err := protodelim.MarshalTo(c.writer, message); err != nil {
		return err
	}
	return c.writer.Flush()
}

func (c *transferConn) receive(message proto.Message) error {
	err := protodelim.UnmarshalOptions{MaxSize: maxTransferMessage}.UnmarshalFrom(c.reader, message)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: the other host closed the connection", pod.ErrUnavailable)
	}
	return err
}

// dialTransfer opens the connection of a move to the podd at api.
func dialTransfer(ctx context.Context, api netip.AddrPort) (*transferConn, error) {
	dialer := net.Dialer{Timeout: dialTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", api.String())
	if err != nil {
		return nil, fmt.Errorf("%w: connecting to %s: %w", pod.ErrUnavailable, api, err)
	}
	request, err := http.NewRequest(http.MethodPost, "http://"+api.String()+transferPath, nil)
	if err != nil {
		conn.Close()
		return nil, err
	}
	request.Header.Set("Connection", "Upgrade")
	request.Header.Set("Upgrade", transferProtocol)
	if err := request.Write(conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: asking %s for a transfer: %w", pod.ErrUnavailable, api, err)
	}
	reader := bufio.NewReaderSize(conn, 256<<10)
	response, err := http.ReadResponse(reader, request)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: asking %s for a transfer: %w", pod.ErrUnavailable, api, err)
	}
	if response.StatusCode != http.StatusSwitchingProtocols {
		conn.Close()
		return nil, fmt.Errorf("%w: %s refused the transfer: %s", pod.ErrUnavailable, api, response.Status)
	}
	return newTransferConn(conn, reader), nil
}

// acceptTransfer takes over the connection of an upgrade request.
func acceptTransfer(w http.ResponseWriter, r *http.Request) (*transferConn, error) {
	if r.Header.Get("Upgrade") != transferProtocol {
		http.Error(w, "want Upgrade: "+transferProtocol, http.StatusUpgradeRequired)
		return nil, errors.New("a transfer request without an upgrade")
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusHTTPVersionNotSupported)
		return nil, fmt.Errorf("taking over the connection of a transfer: %w", err)
	}
	// The server's deadlines do not hold for what follows.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		conn.Close()
		return nil, fmt.Errorf("taking over the connection of a transfer: %w", err)
	}
	reader := bufio.NewReaderSize(buffered.Reader, 256<<10)
	if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+transferProtocol+"\r\n\r\n"); err != nil {
		conn.Close()
		return nil, fmt.Errorf("accepting a transfer: %w", err)
	}
	return newTransferConn(conn, reader), nil
}

// expect receives the target's next message. An error the target reports
// becomes a *stageError.
func (c *transferConn) expect() (*poddv1.TargetMessage, error) {
	message := new(poddv1.TargetMessage)
	if err := c.receive(message); err != nil {
		return nil, err
	}
	if e := message.GetError(); e != nil {
		return nil, &stageError{stage: pod.Stage(e.GetStage()), err: errors.New(e.GetMessage())}
	}
	return message, nil
}

// stageError says in which stage a move failed.
type stageError struct {
	stage pod.Stage
	err   error
}

func (e *stageError) Error() string { return e.err.Error() }
func (e *stageError) Unwrap() error { return e.err }
