package podd

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"

	"podd/daemon"
	"podd/pager"
	"podd/trust"
)

// TestServeMemory: only the target of a move gets the pod's memory.
func TestServeMemory(t *testing.T) {
	d := newDaemon(t, "b", nil)
	s := serveTarget(t, http.HandlerFunc(d.serveMemory)) // as host b, to host a
	give := func(conn net.Conn) error {
		_, err := io.WriteString(conn, "memory")
		return err
	}
	d.memories.give("mine", "a", give)
	d.memories.give("other", "c", give)
	take := d.memories.give("over", "a", give)
	take()
	ask := func(move, protocol string) (status int, text string) {
		t.Helper()
		conn, err := s.peers.Dial(t.Context(), trust.KindHost, "b", "http/1.1")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		request, err := http.NewRequest(http.MethodPost, daemon.PeerURL(trust.KindHost, "b")+memoryPath+"?move="+move, nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Connection", "Upgrade")
		request.Header.Set("Upgrade", protocol)
		if err := request.Write(conn); err != nil {
			t.Fatal(err)
		}
		reader := bufio.NewReader(conn)
		response, err := http.ReadResponse(reader, request)
		if err != nil {
			t.Fatal(err)
		}
		if response.StatusCode != http.StatusSwitchingProtocols {
			return response.StatusCode, ""
		}
		answer := make([]byte, len("memory"))
		if _, err := io.ReadFull(reader, answer); err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, string(answer)
	}
	if status, text := ask("mine", pager.Protocol); status != http.StatusSwitchingProtocols || text != "memory" {
		t.Errorf("the target is answered %d, %q", status, text)
	}
	for move, want := range map[string]int{"other": http.StatusForbidden, "over": http.StatusGone, "": http.StatusGone} {
		if status, text := ask(move, pager.Protocol); status != want || text == "memory" {
			t.Errorf("move %q: %d, %q; want %d", move, status, text, want)
		}
	}
	if status, _ := ask("mine", "http/2"); status != http.StatusUpgradeRequired {
		t.Errorf("another protocol is answered %d", status)
	}
	// One that gets ready is asked again.
	drop := d.memories.keep("alice", 3)
	if status, _ := ask("over", pager.Protocol); status != http.StatusServiceUnavailable || d.memories.kept("alice") != 3 {
		t.Errorf("getting ready: %d", status)
	}
	drop()
	if status, _ := ask("over", pager.Protocol); status != http.StatusGone || d.memories.kept("alice") != 0 {
		t.Errorf("ready: %d", status)
	}
}
