package workload

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func dialUnix(path string) DialFunc {
	return func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}
}

// serve runs handle for every connection to the address it returns.
func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return l.Addr().String()
}

func testContent(n int) ([]byte, string) {
	content := make([]byte, n)
	stream(1).Read(content)
	sum := sha256.Sum256(content)
	return content, hex.EncodeToString(sum[:])
}

func TestDownload(t *testing.T) {
	content, sum := testContent(3 << 20)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}))
	defer server.Close()
	d := NewDownload(DownloadConfig{URL: server.URL, Rate: 16 << 20, SHA256: sum})
	if err := d.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := d.Result(); got.SHA256 != sum || got.Bytes != 3<<20 || got.Total != 3<<20 {
		t.Errorf("result %+v", got)
	}
	d = NewDownload(DownloadConfig{URL: server.URL, SHA256: strings.Repeat("0", 64)})
	if err := d.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "SHA-256") {
		t.Errorf("wrong digest: %v", err)
	}
	slow := NewDownload(DownloadConfig{URL: server.URL, Rate: 1 << 10})
	if err := start(t, slow)(); err != nil {
		t.Errorf("stopped: %v", err)
	}
	cut := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.Write(content[:50])
	}))
	defer cut.Close()
	if err := NewDownload(DownloadConfig{URL: cut.URL}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "after 50 bytes of 100") {
		t.Errorf("cut short: %v", err)
	}
}

func TestKeepAliveAndIdle(t *testing.T) {
	var conns atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	server.Start()
	defer server.Close()
	idle, err := OpenIdle(t.Context(), nil, server.URL, 50)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	k := NewKeepAlive(KeepAliveConfig{URL: server.URL, Connections: 5, Interval: time.Millisecond})
	stop := start(t, k)
	eventually(t, "responses", func() bool { return k.Result().Responses > 100 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if alive, err := idle.Check(t.Context()); alive != 50 || err != nil {
		t.Errorf("%d alive, %v", alive, err)
	}
	if n := conns.Load(); n != 55 {
		t.Errorf("%d connections were made, want 55", n)
	}
	// A server that closes is an error, and never made good by a new connection.
	k = NewKeepAlive(KeepAliveConfig{URL: server.URL, Connections: 2, Interval: time.Millisecond})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- k.Run(ctx) }()
	<-k.Started()
	server.CloseClientConnections()
	eventually(t, "the connections to close", func() bool { alive, _ := idle.Check(t.Context()); return alive == 0 })
	if err := <-ended; err == nil || ctx.Err() != nil {
		t.Errorf("closed connections are no error: %v", err)
	}
}

// deafConn loses what it is to send, for a while.
type deafConn struct {
	net.PacketConn
	lose atomic.Bool
}

func (d *deafConn) WriteTo(p []byte, to net.Addr) (int, error) {
	if d.lose.Load() {
		return len(p), nil
	}
	return d.PacketConn.WriteTo(p, to)
}

func TestUDP(t *testing.T) {
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &deafConn{PacketConn: conn}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- ServeUDP(ctx, server) }()
	u := NewUDP(UDPConfig{Address: conn.LocalAddr().String(), Interval: time.Millisecond})
	stop := start(t, u)
	eventually(t, "answers", func() bool { return u.Result().Received > 50 })
	// Lost datagrams are no error, and show as silence.
	server.lose.Store(true)
	eventually(t, "a silence", func() bool { return u.Result().LongestSilence > 50*time.Millisecond })
	server.lose.Store(false)
	before := u.Result().Received
	eventually(t, "answers again", func() bool { return u.Result().Received > before+10 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if r := u.Result(); r.Duplicates != 0 || r.Sent <= r.Received || r.LongestSilence < 50*time.Millisecond {
		t.Errorf("result %+v", r)
	}
	// An answer to nothing we asked is an error.
	liar, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer liar.Close()
	go func() {
		buf := make([]byte, 100)
		if _, from, err := liar.ReadFrom(buf); err == nil {
			liar.WriteTo([]byte("not what you asked"), from)
		}
	}()
	if err := NewUDP(UDPConfig{Address: liar.LocalAddr().String()}).Run(t.Context()); err == nil || !strings.Contains(err.Error(), "no request of ours") {
		t.Errorf("error %v", err)
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	failures := make(chan error, 10)
	go func() { served <- ServeTCP(ctx, l, 8<<20, func(err error) { failures <- err }) }()
	c := NewTCP(TCPConfig{Address: l.Addr().String(), Rate: 8 << 20, Seed: 42})
	stop := start(t, c)
	eventually(t, "bytes", func() bool { r := c.Result(); return r.Sent > 1<<20 && r.Received > 1<<20 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	// A wrong byte from the client resets it and is reported.
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Write(append(binary.BigEndian.AppendUint64(nil, 7), "this is not the stream of seed 7"...))
	if _, err := io.Copy(io.Discard, conn); err == nil {
		t.Error("a wrong stream is not reset")
	}
	conn.Close()
	if err := <-failures; !strings.Contains(err.Error(), "byte 0 of the stream is wrong") {
		t.Errorf("reported %v", err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestTCPNotices has servers that are wrong in one way each.
func TestTCPNotices(t *testing.T) {
	trailer := func(n uint64) []byte { return binary.BigEndian.AppendUint64([]byte(tcpMagic), n) }
	good := func() *rand.ChaCha8 { return stream(43) }
	part := func(n int) []byte { b := make([]byte, n); good().Read(b); return b }
	for name, test := range map[string]struct {
		answer []byte
		want   string
	}{
		"wrong byte":    {append(part(1000), append([]byte("wrong"), part(1000)...)...), "byte 1000 of the stream is wrong"},
		"cut short":     {part(1000), "without its trailer"},
		"nothing":       {nil, "without its trailer"},
		"bytes missing": {append(part(1000), trailer(3)...), "the server received 3 bytes of"},
	} {
		t.Run(name, func(t *testing.T) {
			address := serve(t, func(conn net.Conn) {
				conn.Write(test.answer)
				conn.(*net.TCPConn).CloseWrite()
				io.Copy(io.Discard, conn)
			})
			c := NewTCP(TCPConfig{Address: address, Seed: 42})
			c.Stop()
			err := c.Run(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}
