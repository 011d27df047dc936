package podd

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// serveTransfers serves an upgrade by serve, as a target does, and returns the
// address.
func serveTransfers(t *testing.T, serve func(*transferConn)) netip.AddrPort {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := acceptTransfer(w, r)
		if err != nil {
			return // the client is told
		}
		defer conn.Close()
		serve(conn)
	}))
	t.Cleanup(server.Close)
	return netip.MustParseAddrPort(server.Listener.Addr().String())
}

func dialTest(t *testing.T, address netip.AddrPort) *transferConn {
	t.Helper()
	conn, err := dialTransfer(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestTransferOrder sends raw sections between messages: they share buffers,
// and neither may take a byte of the other.
func TestTransferOrder(t *testing.T) {
	section := bytes.Repeat([]byte("a page of memory"), 100_000)
	received := make(chan error, 1)
	address := serveTransfers(t, func(conn *transferConn) {
		received <- func() error {
			for range 3 {
				m := new(poddv1.SourceMessage)
				if err := conn.receive(m); err != nil {
					return err
				}
				if m.GetMemory() == nil {
					return errors.New("a message is not the one sent")
				}
				got := make([]byte, len(section))
				if _, err := io.ReadFull(conn, got); err != nil {
					return err
				}
				if !bytes.Equal(got, section) {
					return errors.New("a section has changed")
				}
				if err := conn.send(&poddv1.TargetMessage{Message: &poddv1.TargetMessage_Reserved{Reserved: &poddv1.Reserved{}}}); err != nil {
					return err
				}
			}
			return nil
		}()
	})
	conn := dialTest(t, address)
	for range 3 {
		if err := conn.send(&poddv1.SourceMessage{Message: &poddv1.SourceMessage_Memory{Memory: &poddv1.Memory{}}}); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write(section); err != nil {
			t.Fatal(err)
		}
		if err := conn.writer.Flush(); err != nil {
			t.Fatal(err)
		}
		if m, err := conn.expect(); err != nil || m.GetReserved() == nil {
			t.Fatalf("got %v, %v", m, err)
		}
	}
	if err := <-received; err != nil {
		t.Fatal(err)
	}
	// The other side is done: that is an end, not half a message.
	if _, err := conn.expect(); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "closed the connection") {
		t.Errorf("after the end: %v", err)
	}
}

func TestTransferReportsTheTargetsError(t *testing.T) {
	address := serveTransfers(t, func(conn *transferConn) {
		report := &poddv1.TargetMessage{Error: &poddv1.TargetError{Stage: string(pod.StageRestore), Message: "host b: no such luck"}}
		if err := conn.send(report); err != nil {
			t.Error(err)
		}
	})
	_, err := dialTest(t, address).expect()
	var at *stageError
	if !errors.As(err, &at) || at.stage != pod.StageRestore || err.Error() != "host b: no such luck" {
		t.Errorf("got %#v", err)
	}
}

// TestTransferCutMessage loses the connection in the middle of a message.
func TestTransferCutMessage(t *testing.T) {
	address := serveTransfers(t, func(conn *transferConn) {
		// Length 100, and then nothing.
		if _, err := conn.Conn.Write([]byte{100, 1, 2}); err != nil {
			t.Error(err)
		}
	})
	if m, err := dialTest(t, address).expect(); err == nil {
		t.Errorf("half a message was taken for %v", m)
	}
}

// TestTransferMessageLimit keeps a peer from making this end allocate what it
// announces.
func TestTransferMessageLimit(t *testing.T) {
	address := serveTransfers(t, func(conn *transferConn) {
		// Length 2^35, as a varint.
		if _, err := conn.Conn.Write([]byte{0x80, 0x80, 0x80, 0x80, 0x80, 0x01}); err != nil {
			t.Error(err)
		}
	})
	if _, err := dialTest(t, address).expect(); err == nil || !strings.Contains(err.Error(), "size") {
		t.Errorf("got %v, want an error about the size", err)
	}
}

func TestTransferRefused(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	address := netip.MustParseAddrPort(server.Listener.Addr().String())
	if _, err := dialTransfer(t.Context(), address); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "404") {
		t.Errorf("got %v, want that it was refused with 404", err)
	}
	server.Close()
	if _, err := dialTransfer(t.Context(), address); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), address.String()) {
		t.Errorf("got %v, want that nobody is there", err)
	}
	// And the target wants an upgrade.
	response := httptest.NewRecorder()
	if _, err := acceptTransfer(response, httptest.NewRequest(http.MethodPost, transferPath, nil)); err == nil || response.Code != http.StatusUpgradeRequired {
		t.Errorf("a request without an upgrade: status %d, %v", response.Code, err)
	}
}
