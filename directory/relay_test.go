package directory

import (
	"io"
	"net"
	"sync"
	"testing"
)

// relayed is a TCP relay that a test can cut and mend: a network that fails.
type relayed struct {
	addr  string
	mu    sync.Mutex
	down  bool
	conns map[net.Conn]bool
}

func relay(t *testing.T, to string) *relayed {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relayed{addr: l.Addr().String(), conns: map[net.Conn]bool{}}
	var wait sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		r.cut()
		wait.Wait()
	})
	wait.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil || !r.add(in, out) {
				_ = in.Close()
				continue
			}
			wait.Go(func() { pipe(in, out) })
			wait.Go(func() { pipe(out, in) })
		}
	})
	return r
}

func pipe(from, to net.Conn) {
	_, _ = io.Copy(to, from) // ends when either side closes
	_ = from.Close()
	_ = to.Close()
}

func (r *relayed) add(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range conns {
		r.conns[c] = true
		if r.down {
			_ = c.Close()
		}
	}
	return !r.down
}

func (r *relayed) cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = true
	for c := range r.conns {
		_ = c.Close()
	}
}

func (r *relayed) mend() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down = false
}
