package podd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	poddv1 "podd/api/podd/v1"
	"podd/daemon"
	"podd/netconn"
	"podd/pagesync"
	"podd/pod"
	"podd/trust"
)

// The conversation of a move is described in api/podd/v1/transfer.proto.
const (
	transferPath     = "/podd-transfer"
	transferProtocol = "podd-transfer"
	transferVersion  = 4
	// maxTransferMessage bounds one control message, in bytes. They are
	// small; the sections in between have bounds of their own.
	maxTransferMessage = 1 << 20
	dialTimeout        = 5 * time.Second
	// silenceLimit is how long the other end's kernel may take no bytes, as
	// when a disk is slow; frozenSilence is the same while the pod is frozen.
	silenceLimit  = 20 * time.Second
	frozenSilence = 10 * time.Second
)

// transferConn is one end of the connection of a move.
type transferConn struct {
	net.Conn
	reader *bufio.Reader
	writer *bufio.Writer
	// abandoned is why this end closed it before its time.
	abandoned atomic.Pointer[error]
}

func newTransferConn(conn net.Conn, reader *bufio.Reader) *transferConn {
	return &transferConn{Conn: conn, reader: reader, writer: bufio.NewWriterSize(conn, 256<<10)}
}

// abandon closes the connection; whoever uses it is told why. It does not wait
// for the other end to take a last word, as TLS would.
func (c *transferConn) abandon(cause error) {
	c.abandoned.CompareAndSwap(nil, &cause)
	netconn.Unwrap(c.Conn).Close() // an error means that it is closed already
}

// explain is err, or why the connection was abandoned.
func (c *transferConn) explain(err error) error {
	if cause := c.abandoned.Load(); err != nil && cause != nil {
		return *cause
	}
	return err
}

// Read and Write are what sections (files, pages, images) use; they share the
// buffers with the messages so that order is kept.
func (c *transferConn) Read(p []byte) (int, error) {
	n, err := c.reader.Read(p)
	return n, c.explain(err)
}

func (c *transferConn) Write(p []byte) (int, error) {
	n, err := c.writer.Write(p)
	return n, c.explain(err)
}

// Flush sends what Write has left in the buffer.
func (c *transferConn) Flush() error { return c.explain(c.writer.Flush()) }

func (c *transferConn) send(message proto.Message) error {
	if _, err := protodelim.MarshalTo(c.writer, message); err != nil {
		return c.explain(err)
	}
	return c.explain(c.writer.Flush())
}

func (c *transferConn) receive(message proto.Message) error {
	err := protodelim.UnmarshalOptions{MaxSize: maxTransferMessage}.UnmarshalFrom(c.reader, message)
	if c.abandoned.Load() == nil && errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: %w", pod.ErrUnavailable, errHungUp)
	}
	return c.explain(err)
}

// errHungUp means that the other end closed the connection.
var errHungUp = errors.New("the other host closed the connection")

// isBroken reports whether err says that the connection was lost, or the pager's,
// which the target ends when it gives up.
func isBroken(err error) bool {
	var network *net.OpError
	return errors.As(err, &network) || errors.Is(err, pagesync.ErrLost) || errors.Is(err, errHungUp) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)
}

// dialTransfer opens the connection of a move to the podd of a host.
func dialTransfer(ctx context.Context, peers *daemon.Peers, host string) (*transferConn, error) {
	conn, err := peers.Dial(ctx, trust.KindHost, host, "http/1.1")
	if err != nil {
		return nil, err
	}
	t, err := askForTransfer(conn, host)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return t, nil
}

func askForTransfer(conn net.Conn, host string) (*transferConn, error) {
	if err := netconn.LimitSilence(conn, silenceLimit); err != nil {
		return nil, err
	}
	conn = daemon.Bulk(conn)
	reader := bufio.NewReaderSize(conn, 256<<10)
	err := netconn.AskUpgrade(conn, reader, daemon.PeerURL(trust.KindHost, host)+transferPath, transferProtocol, time.Now().Add(dialTimeout))
	if err != nil {
		return nil, fmt.Errorf("%w: asking host %s for a transfer: %w", pod.ErrUnavailable, host, err)
	}
	return newTransferConn(conn, reader), nil
}

// acceptTransfer takes over the connection of an upgrade request. peer is the
// host at its other end; nobody else may move a pod here.
func acceptTransfer(w http.ResponseWriter, r *http.Request) (t *transferConn, peer string, err error) {
	if peer, err = daemon.HostFrom(r); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return nil, "", err
	}
	conn, err := acceptUpgrade(w, r, transferProtocol)
	if err != nil {
		return nil, "", err
	}
	return newTransferConn(conn, bufio.NewReaderSize(conn, 256<<10)), peer, nil
}

// acceptUpgrade takes over the connection of a request to speak a protocol of
// podd's own. The client is told of an error.
func acceptUpgrade(w http.ResponseWriter, r *http.Request, protocol string) (net.Conn, error) {
	if err := netconn.WantUpgrade(w, r, protocol); err != nil {
		return nil, err
	}
	conn, err := netconn.TakeOver(w, protocol, silenceLimit)
	if err != nil {
		return nil, err
	}
	return daemon.Bulk(conn), nil
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
