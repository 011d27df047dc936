package netconn

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// layer is a connection over another one.
type layer struct{ net.Conn }

func (l layer) NetConn() net.Conn { return l.Conn }

// ask asks a server for an upgrade and returns its connection, which is closed
// with the test.
func ask(t *testing.T, server *httptest.Server, protocol string) (net.Conn, *bufio.Reader, error) {
	t.Helper()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	reader := bufio.NewReader(conn)
	return conn, reader, AskUpgrade(conn, reader, server.URL+"/x", protocol, time.Now().Add(time.Minute))
}

func TestUpgrade(t *testing.T) {
	served := make(chan error, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := WantUpgrade(w, r, "echo"); err != nil {
			served <- err
			return
		}
		conn, err := TakeOver(w, "echo", 7*time.Second)
		if err == nil {
			_, err = io.Copy(conn, conn)
			conn.Close()
		}
		served <- err
	}))
	defer server.Close()
	conn, reader, err := ask(t, server, "echo")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(reader); err != nil || string(answer) != "hello" {
		t.Errorf("got %q, %v", answer, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, _, err := ask(t, server, "other"); err == nil || !strings.Contains(err.Error(), "426") || !strings.Contains(err.Error(), "want Upgrade: echo") {
		t.Errorf("another protocol: %v", err)
	}
	if err := <-served; err == nil {
		t.Error("another protocol was agreed to")
	}
}

func TestTakeOverTheImpatient(t *testing.T) {
	served := make(chan error, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, err := TakeOver(w, "echo", time.Second)
		served <- err
	}))
	defer server.Close()
	conn, err := net.Dial("tcp", server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello"); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err == nil {
		t.Error("no error though the client went on at once")
	}
	// Closed with bytes that nobody has read, it may be reset.
	if answer, _ := io.ReadAll(conn); len(answer) > 0 {
		t.Errorf("the client was answered %q", answer)
	}
}

// dialSilence connects to a server that hangs. The connection is closed with the
// test.
func dialSilence(t *testing.T) net.Conn {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func TestAskAServerThatHangs(t *testing.T) {
	conn := dialSilence(t)
	err := AskUpgrade(conn, bufio.NewReader(conn), "http://x/", "echo", time.Now().Add(10*time.Millisecond))
	if timeout, ok := err.(net.Error); !ok || !timeout.Timeout() {
		t.Errorf("got %v", err)
	}
}

func TestLimitSilence(t *testing.T) {
	conn := dialSilence(t)
	outer := layer{layer{conn}}
	if Unwrap(outer) != conn {
		t.Error("the socket is not found")
	}
	if err := LimitSilence(outer, 8*time.Second); err != nil {
		t.Fatal(err)
	}
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for option, want := range map[int]int{unix.TCP_USER_TIMEOUT: 8000, unix.TCP_KEEPIDLE: 2, unix.TCP_KEEPINTVL: 2, unix.TCP_KEEPCNT: 3} {
		var got int
		var gotErr error
		if err := raw.Control(func(fd uintptr) { got, gotErr = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option) }); err != nil {
			t.Fatal(err)
		}
		if gotErr != nil || got != want {
			t.Errorf("option %d is %d, want %d; %v", option, got, want, gotErr)
		}
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	if err := LimitSilence(layer{a}, time.Second); err != nil {
		t.Errorf("what is no TCP: %v", err)
	}
}
