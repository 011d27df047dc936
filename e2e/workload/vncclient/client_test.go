package vncclient

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"image/color"
	"image/png"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// server is the other end, as RFC 6143 has it: a desktop of 4 by 3 pixels.
type server struct {
	t    *testing.T
	conn net.Conn
	in   *bufio.Reader
}

func (s *server) send(parts ...any) {
	s.t.Helper()
	for _, part := range parts {
		if text, ok := part.(string); ok {
			part = []byte(text)
		}
		if err := binary.Write(s.conn, binary.BigEndian, part); err != nil {
			s.t.Error(err)
		}
	}
}

// expect reads what the client has to send.
func (s *server) expect(want string) {
	s.t.Helper()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(s.in, got); err != nil || string(got) != want {
		s.t.Errorf("the client sends %q, %v; want %q", got, err, want)
	}
}

const (
	allOfIt     = "\x03\x00\x00\x00\x00\x00\x00\x04\x00\x03"
	whatChanges = "\x03\x01\x00\x00\x00\x00\x00\x04\x00\x03"
)

func (s *server) handshake() {
	s.t.Helper()
	s.send("RFB 003.008\n")
	s.expect("RFB 003.008\n")
	s.send("\x02\x02\x01") // authentication, or none
	s.expect("\x01")
	s.send(uint32(0))
	s.expect("\x01")
	s.send(uint16(4), uint16(3), make([]byte, 16), uint32(4), "desk")
	s.expect("\x00\x00\x00\x00" + string(pixelFormat[:]))
	s.expect("\x02\x00\x00\x03\x00\x00\x00\x01\x00\x00\x00\x00\xff\xff\xff\x21")
	s.expect(allOfIt)
}

// start runs serve as a server and returns a connection to it. The server ends
// with the test.
func start(t *testing.T, serve func(*server)) net.Conn {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := listener.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		serve(&server{t, conn, bufio.NewReader(conn)})
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		listener.Close()
		<-done
	})
	return conn
}

func bounded(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// red and blue are pixels in the format asked for, whose fourth byte is noise.
const (
	red  = "\xff\x00\x00\x00"
	blue = "\x00\x00\xff\x77"
)

func TestClient(t *testing.T) {
	carryOn := make(chan struct{})
	conn := start(t, func(s *server) {
		s.handshake()
		// All red, but for the pixel in the middle of the first row.
		s.send("\x00\x00", uint16(1), uint16(0), uint16(0), uint16(4), uint16(3), int32(encodingRaw), red+blue+strings.Repeat(red, 10))
		s.expect(whatChanges)
		<-carryOn
		s.send("\x02", "\x03\x00\x00\x00", uint32(2), "hi", "\x01\x00\x00\x00", uint16(1), "\x00\x00\x00\x00\x00\x00")
		// The first two rows one row down, then a smaller desktop of one blue pixel.
		s.send("\x00\x00", uint16(1), uint16(0), uint16(1), uint16(4), uint16(2), int32(encodingCopyRect), uint16(0), uint16(0))
		s.expect(whatChanges)
		s.expect("\x04\x01\x00\x00\x00\x00\x00A\x04\x00\x00\x00\x00\x00\x00A")
		s.expect("\x04\x01\x00\x00\x00\x00\xff\x0d\x04\x00\x00\x00\x00\x00\xff\x0d")
		s.expect("\x05\x00\x00\x02\x00\x01\x05\x01\x00\x02\x00\x01\x05\x00\x00\x02\x00\x01")
		s.send("\x00\x00", uint16(2), uint32(0), uint16(1), uint16(1), int32(encodingDesktopSize),
			uint32(0), uint16(1), uint16(1), int32(encodingRaw), blue)
		s.expect("\x03\x01\x00\x00\x00\x00\x00\x01\x00\x01")
	})
	ctx := bounded(t)
	c, err := Connect(ctx, conn)
	if err != nil {
		t.Fatal(err)
	}
	if c.Name() != "desk" {
		t.Errorf("name %q", c.Name())
	}
	requireColors(t, c, "RBRR RRRR RRRR")
	first := c.Stats()
	close(carryOn)
	if err := c.Wait(ctx, func(s Stats) bool { return s.Updates == 2 }); err != nil {
		t.Fatal(err)
	}
	requireColors(t, c, "RBRR RBRR RRRR")
	if err := errors.Join(c.Type("A\n"), c.Click(2, 1)); err != nil {
		t.Error(err)
	}
	if err := c.Wait(ctx, func(s Stats) bool { return s.Updates == 3 }); err != nil {
		t.Fatal(err)
	}
	requireColors(t, c, "B")
	if s := c.Stats(); s.Rectangles != 4 || s.Bytes <= first.Bytes || s.Silence <= 0 {
		t.Errorf("stats %+v after %+v", s, first)
	}
	if err := c.Wait(ctx, func(Stats) bool { return false }); !errors.Is(err, io.EOF) {
		t.Errorf("after the server's end: %v", err)
	}
	path := filepath.Join(t.TempDir(), "picture.png")
	if err := c.SavePNG(path); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if saved, err := png.Decode(file); err != nil || saved.Bounds().Dx() != 1 {
		t.Errorf("the saved picture: %v, %v", saved, err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

// requireColors compares the picture with rows of letters.
func requireColors(t *testing.T, c *Client, want string) {
	t.Helper()
	picture := c.Picture()
	var got strings.Builder
	for y := range picture.Rect.Dy() {
		if y > 0 {
			got.WriteByte(' ')
		}
		for x := range picture.Rect.Dx() {
			switch picture.RGBAAt(x, y) {
			case color.RGBA{R: 0xff, A: 0xff}:
				got.WriteByte('R')
			case color.RGBA{B: 0xff, A: 0xff}:
				got.WriteByte('B')
			default:
				got.WriteByte('?')
			}
		}
	}
	if got.String() != want {
		t.Errorf("the picture is %s, want %s", &got, want)
	}
}

func TestSilence(t *testing.T) {
	tick := make(chan struct{})
	conn := start(t, func(s *server) {
		s.handshake()
		for range 3 {
			s.send("\x00\x00", uint16(0))
			s.expect(whatChanges)
			<-tick
		}
	})
	begun := time.Now() // the silence begins somewhere in Connect
	c, err := Connect(bounded(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const pause = 50 * time.Millisecond
	// A silence counts while it lasts.
	for c.Stats().Silence < pause {
		<-time.After(time.Millisecond)
	}
	tick <- struct{}{}
	if err := c.Wait(bounded(t), func(s Stats) bool { return s.Updates == 2 }); err != nil {
		t.Fatal(err)
	}
	if got := c.Stats().Silence; got < pause || got > time.Since(begun) {
		t.Errorf("silence %v after one of %v to %v", got, pause, time.Since(begun))
	}
	c.ResetSilence()
	reset := time.Now()
	tick <- struct{}{}
	if err := c.Wait(bounded(t), func(s Stats) bool { return s.Updates == 3 }); err != nil {
		t.Fatal(err)
	}
	if got := c.Stats().Silence; got > time.Since(reset)+pause/2 {
		t.Errorf("silence %v, %v after it was reset", got, time.Since(reset))
	}
	tick <- struct{}{}
}

func TestClose(t *testing.T) {
	conn := start(t, func(s *server) {
		s.handshake()
		s.send("\x00\x00", uint16(0))
		s.expect(whatChanges)
		io.Copy(io.Discard, s.in) // until the client goes
	})
	c, err := Connect(bounded(t), conn)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if err := c.WaitUpdates(bounded(t), 1); !errors.Is(err, ErrClosed) || !errors.Is(c.Err(), ErrClosed) {
		t.Errorf("waiting after the end: %v", err)
	}
}

func TestWaitEndsWithContext(t *testing.T) {
	conn := start(t, func(s *server) {
		s.handshake()
		io.Copy(io.Discard, s.in)
	})
	ctx, cancel := context.WithCancel(bounded(t))
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := Connect(ctx, conn); !errors.Is(err, context.Canceled) {
		t.Errorf("connecting to a server that sends no picture: %v", err)
	}
}

func TestBadServers(t *testing.T) {
	greeting := func(s *server, then ...any) {
		s.send("RFB 003.008\n")
		s.send(then...)
		io.Copy(io.Discard, s.in)
	}
	update := func(s *server, then ...any) {
		s.handshake()
		s.send("\x00\x00")
		s.send(then...)
		io.Copy(io.Discard, s.in)
	}
	for want, serve := range map[string]func(*server){
		"no VNC server":        func(s *server) { s.send("SSH-2.0-OpenSSH_9.2\r\n") },
		"3.8 or later":         func(s *server) { s.send("RFB 003.003\n") },
		"EOF":                  func(s *server) { s.send("RFB 003") },
		"too many":             func(s *server) { greeting(s, "\x00", uint32(8), "too many") },
		"wants authentication": func(s *server) { greeting(s, "\x01\x02") },
		"go away":              func(s *server) { greeting(s, "\x01\x01", uint32(1), uint32(7), "go away") },
		"0 by 9 pixels":        func(s *server) { greeting(s, "\x01\x01", uint32(0), uint16(0), uint16(9), make([]byte, 16), uint32(0)) },
		"text of 4294967295": func(s *server) {
			greeting(s, "\x01\x01", uint32(0), uint16(4), uint16(3), make([]byte, 16), uint32(0xffffffff))
		},
		"draws at": func(s *server) { update(s, uint16(1), uint16(3), uint16(0), uint16(2), uint16(1), int32(encodingRaw)) },
		"copies from": func(s *server) {
			update(s, uint16(1), uint32(0), uint16(4), uint16(3), int32(encodingCopyRect), uint16(1), uint16(0))
		},
		"encoding 16":         func(s *server) { update(s, uint16(1), uint32(0), uint16(4), uint16(3), int32(16)) },
		"desktop is 65535 by": func(s *server) { update(s, uint16(1), uint32(0), uint16(65535), uint16(3), int32(encodingDesktopSize)) },
		"message 9":           func(s *server) { s.handshake(); s.send("\x09"); io.Copy(io.Discard, s.in) },
	} {
		t.Run(strings.ReplaceAll(want, " ", "-"), func(t *testing.T) {
			_, err := Connect(bounded(t), start(t, serve))
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want an error with %q", err, want)
			}
		})
	}
}
