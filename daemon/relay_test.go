package daemon

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"podd/trust"
	"podd/trust/trusttest"
)

// TestHandedConnections serves an API on connections that were not accepted: who
// calls is known as on any other, and turned out as on any other.
func TestHandedConnections(t *testing.T) {
	issuer := trusttest.Cluster(t)
	a := trusttest.Member(t, issuer, hostA, 0)
	b := trusttest.Member(t, issuer, trust.Identity{Kind: trust.KindHost, Name: "b"}, 0)
	audit, err := OpenAudit(filepath.Join(t.TempDir(), "audit.jsonl"), quiet())
	if err != nil {
		t.Fatal(err)
	}
	revocations := NewRevocations(quiet())
	l := NewHandedListener(&net.TCPAddr{})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	hung := make(chan struct{})
	go func() {
		done <- NewGuard(b, revocations, audit, quiet()).Serve(ctx, l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			host, err := HostFrom(r)
			if err != nil {
				t.Error(err)
			}
			io.WriteString(w, "hello "+host)
			if r.URL.Path == "/hang" {
				_ = http.NewResponseController(w).Flush()
				<-r.Context().Done()
				close(hung)
			}
		}))
	}()
	peers := NewPeers(a, NewRevocations(quiet()), nil).Through(func(context.Context, trust.Kind, string) (net.Conn, string, error) {
		near, far := connected(t)
		go l.Hand(far)
		return near, "the other end", nil
	}, patience)
	t.Cleanup(peers.CloseIdle)
	response, err := peers.Client().Get(PeerURL(trust.KindHost, "b") + "/")
	if err != nil {
		t.Fatal(err)
	}
	text, err := io.ReadAll(response.Body)
	response.Body.Close()
	if err != nil || string(text) != "hello a" {
		t.Errorf("the answer is %q, %v", text, err)
	}
	if response, err = peers.Client().Get(PeerURL(trust.KindHost, "b") + "/hang"); err != nil {
		t.Fatal(err)
	}
	revocations.Set(map[string]bool{trust.Serial(a.Leaf()): true})
	if _, err := io.ReadAll(response.Body); err == nil {
		t.Error("a connection goes on whose certificate was revoked")
	}
	response.Body.Close()
	<-hung

	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	_, late := connected(t)
	l.Hand(late)
	if _, err := late.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a connection that comes too late: %v", err)
	}
	if err := audit.Close(); err != nil {
		t.Error(err)
	}
}

// connected is both ends of a connection over loopback.
func connected(t *testing.T) (near, far net.Conn) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	if near, err = net.Dial("tcp", listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return near, far
}

// TestRelayErrors: an error says that the proxy was in between, and is still what
// TLS and net/http take it for.
func TestRelayErrors(t *testing.T) {
	near, far := connected(t)
	conn := &relayedConn{Conn: near, proxy: "p", reader: bufio.NewReaderSize(near, relayReader)}
	if err := conn.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	_, err := conn.Read(make([]byte, 1))
	network, ok := err.(net.Error)
	if !ok || !network.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) || !strings.HasPrefix(err.Error(), "through proxy p: ") {
		t.Errorf("a timeout is %#v", err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	far.Close()
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("an end is %#v", err)
	}
}
