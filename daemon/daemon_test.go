package daemon

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
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
	if urls, err := Endpoints("https://10.0.0.1:2379,https://10.0.0.2:2379"); err != nil || len(urls) != 2 {
		t.Errorf("two: got %v, %v", urls, err)
	}
	for _, address := range []string{"", "10.0.0.1:2379", "http://10.0.0.1:2379", "https://10.0.0.1:2379,"} {
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

func TestListen(t *testing.T) {
	l, err := Listen(netip.MustParseAddrPort("127.0.0.1:0"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := Listen(netip.MustParseAddrPort(l.Addr().String())); !errors.Is(err, pod.ErrConflict) {
		t.Errorf("the same port again: %v", err)
	}
	// One that a killed daemon left behind is in nobody's way.
	path := filepath.Join(t.TempDir(), "a.sock")
	for range 2 {
		l, err := ListenLocal(path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("the socket is %v, %v", st.Mode(), err)
		}
	}
}
