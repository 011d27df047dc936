package podd

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	poddv1 "podd/api/podd/v1"
	"podd/daemon"
	"podd/pod"
	"podd/trust"
)

// transfers is a target, host b, and the source, host a.
type transfers struct {
	*testCluster
	peers *daemon.Peers
}

// serveTransfers serves an upgrade by serve, as a target does.
func serveTransfers(t testing.TB, serve func(*transferConn)) *transfers {
	t.Helper()
	return serveTarget(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, peer, err := acceptTransfer(w, r)
		if err != nil {
			return // the client is told
		}
		defer conn.Close()
		if peer != "a" {
			t.Errorf("the source is host %s", peer)
		}
		serve(conn)
	}))
}

func serveTarget(t testing.TB, handler http.Handler) *transfers {
	t.Helper()
	s := &transfers{testCluster: newTestCluster(t)}
	s.serve(s.store(host("b")), handler)
	s.peers = s.testCluster.peers(host("a"))
	return s
}

func dialTest(t testing.TB, s *transfers) *transferConn {
	t.Helper()
	conn, err := dialTransfer(t.Context(), s.peers, "b")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// TestTransferOrder sends raw sections between messages: they share buffers,
// and neither may take a byte of the other.
// Nothing may come that would change what was verified or mounted.
func TestTargetOrder(t *testing.T) {
	files := &poddv1.SourceMessage{Message: &poddv1.SourceMessage_Files{Files: &poddv1.Files{}}}
	memory := &poddv1.SourceMessage{Message: &poddv1.SourceMessage_Memory{Memory: &poddv1.Memory{}}}
	images := &poddv1.SourceMessage{Message: &poddv1.SourceMessage_Images{Images: &poddv1.Images{}}}
	restore := &poddv1.SourceMessage{Message: &poddv1.SourceMessage_Restore{Restore: &poddv1.Restore{}}}
	for _, c := range []struct {
		m       *targetMove
		allowed []*poddv1.SourceMessage
		refused []*poddv1.SourceMessage
	}{
		{&targetMove{}, []*poddv1.SourceMessage{files, memory, images}, []*poddv1.SourceMessage{restore}},
		{&targetMove{imaged: true}, []*poddv1.SourceMessage{files}, []*poddv1.SourceMessage{memory, images, restore}},
		{&targetMove{mounted: true}, nil, []*poddv1.SourceMessage{files, memory, images, restore}},
		{&targetMove{imaged: true, mounted: true}, []*poddv1.SourceMessage{restore}, []*poddv1.SourceMessage{files, memory, images}},
	} {
		for _, message := range c.allowed {
			if err := c.m.inOrder(message); err != nil {
				t.Errorf("images %v, mounted %v: %v: %v", c.m.imaged, c.m.mounted, message, err)
			}
		}
		for _, message := range c.refused {
			if err := c.m.inOrder(message); err == nil {
				t.Errorf("images %v, mounted %v: %v is taken", c.m.imaged, c.m.mounted, message)
			}
		}
	}
}

func TestTransferOrder(t *testing.T) {
	section := bytes.Repeat([]byte("a page of memory"), 100_000)
	received := make(chan error, 1)
	s := serveTransfers(t, func(conn *transferConn) {
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
	conn := dialTest(t, s)
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
	s := serveTransfers(t, func(conn *transferConn) {
		report := &poddv1.TargetMessage{Error: &poddv1.TargetError{Stage: string(pod.StageRestore), Message: "host b: no such luck"}}
		if err := conn.send(report); err != nil {
			t.Error(err)
		}
	})
	_, err := dialTest(t, s).expect()
	var at *stageError
	if !errors.As(err, &at) || at.stage != pod.StageRestore || err.Error() != "host b: no such luck" {
		t.Errorf("got %#v", err)
	}
}

// TestTransferCutMessage loses the connection in the middle of a message.
func TestTransferCutMessage(t *testing.T) {
	s := serveTransfers(t, func(conn *transferConn) {
		// Length 100, and then nothing.
		if _, err := conn.Conn.Write([]byte{100, 1, 2}); err != nil {
			t.Error(err)
		}
	})
	if m, err := dialTest(t, s).expect(); err == nil {
		t.Errorf("half a message was taken for %v", m)
	}
}

// TestTransferMessageLimit keeps a peer from making this end allocate what it
// announces.
func TestTransferMessageLimit(t *testing.T) {
	s := serveTransfers(t, func(conn *transferConn) {
		// Length 2^35, as a varint.
		if _, err := conn.Conn.Write([]byte{0x80, 0x80, 0x80, 0x80, 0x80, 0x01}); err != nil {
			t.Error(err)
		}
	})
	if _, err := dialTest(t, s).expect(); err == nil || !strings.Contains(err.Error(), "size") {
		t.Errorf("got %v, want an error about the size", err)
	}
}

func TestTransferRefused(t *testing.T) {
	s := serveTarget(t, http.NotFoundHandler())
	if _, err := dialTransfer(t.Context(), s.peers, "b"); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), "404") {
		t.Errorf("got %v, want that it was refused with 404", err)
	}
	// Somebody else is at its address.
	s.apis["c.host.podd"] = s.apis["b.host.podd"]
	if _, err := dialTransfer(t.Context(), s.peers, "c"); !errors.Is(err, pod.ErrUntrusted) || !strings.Contains(err.Error(), "host c at "+s.apis["b.host.podd"].String()) {
		t.Errorf("got %v, want that it is not host c", err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	s.apis["d.host.podd"] = netip.MustParseAddrPort(listener.Addr().String())
	if _, err := dialTransfer(t.Context(), s.peers, "d"); !errors.Is(err, pod.ErrUnavailable) || !strings.Contains(err.Error(), listener.Addr().String()) {
		t.Errorf("got %v, want that nobody is there", err)
	}
}

// TestTransferForHostsOnly has others try, and a host that does not know how.
func TestTransferForHostsOnly(t *testing.T) {
	s := serveTransfers(t, func(*transferConn) { t.Error("a transfer was accepted") })
	for _, who := range []trust.Identity{
		{Kind: trust.KindProxy, Name: "other"}, {Kind: trust.KindUser, Name: "jane", Role: trust.RoleAdmin},
	} {
		if _, err := dialTransfer(t.Context(), s.testCluster.peers(who), "b"); err == nil || !strings.Contains(err.Error(), "hosts only") {
			t.Errorf("%s: got %v, want that it is for hosts only", who, err)
		}
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, daemon.PeerURL(trust.KindHost, "b")+transferPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := s.peers.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusUpgradeRequired {
		t.Errorf("a request without an upgrade: %s", response.Status)
	}
}
