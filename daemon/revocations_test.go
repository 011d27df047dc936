package daemon

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
	"podd/trust"
)

// TestRevocation turns out members who are connected: their connections end,
// and they get no others.
func TestRevocation(t *testing.T) {
	n := newIssuer(t, 0)
	n.mux.HandleFunc("POST /stream", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		if err := http.NewResponseController(w).Flush(); err != nil {
			t.Error(err)
		}
		<-r.Context().Done()
	})
	n.mux.HandleFunc("POST /take", func(w http.ResponseWriter, r *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n"); err != nil {
			t.Error(err)
		}
		_, _ = io.Copy(io.Discard, conn) // to the end, however it comes
	})
	jane, spared, host := n.credentials(operator), n.credentials(viewer), n.credentials(hostA)
	open := func(who *trust.Store) io.ReadCloser {
		response, err := n.client(who).Post(n.url()+"/stream", "", nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { response.Body.Close() })
		return response.Body
	}
	ofJane, ofSpared, ofHost := open(jane), open(spared), open(host)
	// A connection that was taken over, as for a transfer.
	peers := NewPeers(host, NewRevocations(quiet()), FindIn(n.Cluster.Directory.Directory))
	taken, err := peers.Dial(t.Context(), trust.KindProxy, "proxy", "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	if _, err := io.WriteString(taken, "POST /take HTTP/1.1\r\nHost: proxy\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(taken, make([]byte, len("HTTP/1.1 101"))); err != nil {
		t.Fatal(err)
	}

	request := connect.NewRequest(&poddv1.RevokeUserRequest{Name: operator.Name})
	if _, err := n.trusted(n.client(n.credentials(admin))).RevokeUser(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	if err := n.Revoke(t.Context(), hostA); err != nil {
		t.Fatal(err)
	}
	for name, stream := range map[string]io.Reader{"jane's stream": ofJane, "the host's stream": ofHost, "what was taken over": taken} {
		// That the rest of a response is read first changes nothing.
		if _, err := io.Copy(io.Discard, stream); err == nil && stream != io.Reader(taken) {
			t.Errorf("%s ended without an error", name)
		}
	}
	if _, err := n.client(jane).Post(n.url()+"/stream", "", nil); err == nil {
		t.Error("she gets a new connection")
	}
	if _, err := n.trusted(n.local()).RevokeUser(t.Context(), request); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("a second time: %v", err)
	}
	if _, err := n.trusted(n.client(spared)).GetTrust(t.Context(), connect.NewRequest(&poddv1.GetTrustRequest{})); err != nil {
		t.Errorf("who was not turned out: %v", err)
	}
	ofSpared.Close()
}

// TestRevokedPeer turns out a daemon that others are connected to, and call.
func TestRevokedPeer(t *testing.T) {
	n := newIssuer(t, 0)
	a := n.member(hostA)
	conn, err := n.Peers.Dial(t.Context(), trust.KindHost, "a", "http/1.1")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := n.Revoke(t.Context(), hostA); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection goes on")
	}
	if _, err := n.Peers.Dial(t.Context(), trust.KindHost, "a", "http/1.1"); !errors.Is(err, pod.ErrUntrusted) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("another connection: %v", err)
	}
	// It does not get at the directory any more, and is told what to do.
	a.stop()
	_, err = OpenCluster(t.Context(), ClusterOptions{
		Store: a.Store, StateDir: a.state, Log: quiet(), Directory: DirectoryOptions{StateDir: a.state, Name: "a", Log: quiet()},
	})
	if err == nil || !strings.Contains(err.Error(), "revoked") || !strings.Contains(err.Error(), "remove "+a.Store.Dir()) {
		t.Errorf("its next start: %v", err)
	}
}
