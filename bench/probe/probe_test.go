package probe

import (
	"bufio"
	"encoding/binary"
	"io"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"

	"podd/bench/workload"
)

// serve answers requests to Counting until it gets hold, which it closes over
// before it goes on; lie makes its answers wrong.
func serve(conn net.Conn, pause <-chan struct{}, from uint64, lie bool) {
	defer conn.Close()
	var word [8]byte
	for {
		if _, err := io.ReadFull(conn, word[:]); err != nil {
			return
		}
		n := binary.LittleEndian.Uint64(word[:])
		if n == from {
			<-pause
		}
		factor := uint64(workload.Factor)
		answer := n * factor
		if lie {
			answer++
		}
		if _, err := conn.Write(binary.LittleEndian.AppendUint64(nil, answer)); err != nil {
			return
		}
	}
}

func TestSilenceIsMeasured(t *testing.T) {
	client, server := net.Pipe()
	pause := make(chan struct{})
	go serve(server, pause, 10, false)
	p := New(client, Counting{})
	p.Start()
	const silence = 100 * time.Millisecond
	time.AfterFunc(silence, func() { close(pause) })
	<-pause
	got, err := p.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got <= 0 || got > 20*silence {
		t.Errorf("the longest silence was %v", got)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func TestWrongAnswerIsNoticed(t *testing.T) {
	client, server := net.Pipe()
	go serve(server, nil, 1<<40, true)
	p := New(client, Counting{})
	p.Start()
	if _, err := p.Stop(t.Context()); err == nil || !strings.Contains(err.Error(), "want") {
		t.Errorf("the error is %v", err)
	}
	p.Close()
}

func TestLostConnectionIsNoticed(t *testing.T) {
	client, server := net.Pipe()
	p := New(client, Counting{})
	server.Close()
	p.Start()
	if _, err := p.Stop(t.Context()); err == nil {
		t.Error("no error")
	}
	if p.Err() == nil {
		t.Error("no error is kept")
	}
	p.Close()
}

func TestRedisDialogue(t *testing.T) {
	d := Redis{Key: "k"}
	if got := string(d.Request(nil, 7)); got != "*2\r\n$4\r\nINCR\r\n$1\r\nk\r\n" {
		t.Errorf("%q", got)
	}
	if err := d.Answer(bufio.NewReader(strings.NewReader(":8\r\n")), 7); err != nil {
		t.Error(err)
	}
	if err := d.Answer(bufio.NewReader(strings.NewReader(":9\r\n")), 7); err == nil {
		t.Error("a wrong answer is taken")
	}
}

// TestServer asks the real server all it answers.
func TestServer(t *testing.T) {
	program, err := workload.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(address)
	cmd := exec.CommandContext(t.Context(), program, "-p", port, "-m", "4", "-d", "10", "-n", "3")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	conn := dial(t, address)
	p := New(conn, Counting{})
	defer p.Close()
	p.Start()
	silence, err := p.Stop(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	gap, err := AskWord(t.Context(), p, workload.AskGap)
	if err != nil {
		t.Fatal(err)
	}
	memory, err := AskWord(t.Context(), p, workload.AskMemory)
	if err != nil {
		t.Fatal(err)
	}
	right, err := AskWord(t.Context(), p, workload.AskCheck)
	if err != nil {
		t.Fatal(err)
	}
	if memory < 4<<20 || memory > 10<<20 || right != 1 {
		t.Errorf("silence %v, gap %v, %d bytes resident, memory right: %d", silence, time.Duration(gap), memory, right)
	}
}

func dial(t *testing.T, address string) net.Conn {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			return conn
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		<-time.After(5 * time.Millisecond)
	}
}
