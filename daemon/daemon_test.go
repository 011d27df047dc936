package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"podd/pod"
)

func TestNewLogger(t *testing.T) {
	for _, format := range []string{"text", "json"} {
		if _, err := NewLogger("debug", format); err != nil {
			t.Error(err)
		}
	}
	for level, format := range map[string]string{"loud": "text", "info": "xml"} {
		if _, err := NewLogger(level, format); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("log level %s, format %s: error is %v", level, format, err)
		}
	}
}

func TestEndpoints(t *testing.T) {
	if urls, err := Endpoints(EmbeddedDirectory); err != nil || urls != nil {
		t.Errorf("embedded: got %v, %v", urls, err)
	}
	if urls, err := Endpoints("http://10.0.0.1:2379,https://10.0.0.2:2379"); err != nil || len(urls) != 2 {
		t.Errorf("two: got %v, %v", urls, err)
	}
	for _, address := range []string{"", "10.0.0.1:2379", "http://10.0.0.1:2379,"} {
		if _, err := Endpoints(address); !errors.Is(err, pod.ErrInvalid) {
			t.Errorf("%q: got %v, want ErrInvalid", address, err)
		}
	}
}

func TestLock(t *testing.T) {
	dir := t.TempDir()
	unlock, err := Lock(dir, "podd")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir, "podd"); !errors.Is(err, pod.ErrConflict) || !strings.Contains(err.Error(), "another podd") {
		t.Errorf("a second time: %v", err)
	}
	other, err := Lock(dir, "podproxy")
	if err != nil {
		t.Errorf("another program: %v", err)
	} else {
		other()
	}
	unlock()
	again, err := Lock(dir, "podd")
	if err != nil {
		t.Fatalf("after it was given back: %v", err)
	}
	again()
}

func TestServe(t *testing.T) {
	l, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(netip.MustParseAddrPort(l.Addr().String())); !errors.Is(err, pod.ErrConflict) {
		t.Errorf("the same port again: %v", err)
	}
	log, err := NewLogger("error", "text")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.ProtoMajor) })
	go func() { done <- Serve(ctx, NewServer(handler, log), l) }()

	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	defer transport.CloseIdleConnections()
	for major, client := range map[string]*http.Client{"1": http.DefaultClient, "2": {Transport: transport}} {
		response, err := client.Get("http://" + l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || string(body) != major {
			t.Errorf("HTTP/%s: got %q, %v", major, body, err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("stopping: %v", err)
	}
}
