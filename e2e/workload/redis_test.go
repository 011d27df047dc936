package workload

import (
	"bufio"
	"errors"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// startRedis starts redis-server on a unix socket of its own.
func startRedis(t *testing.T) (address string, dial DialFunc) {
	t.Helper()
	program, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatalf("this test needs redis-server (Debian: redis-server): %v", err)
	}
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	cmd := exec.Command(program, "--port", "0", "--unixsocket", socket, "--dir", dir, "--save", "", "--daemonize", "no")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	eventually(t, "redis-server", func() bool {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	})
	return socket, dialUnix(socket)
}

func TestRedis(t *testing.T) {
	address, dial := startRedis(t)
	r := NewRedis(RedisConfig{Address: address, Dial: dial, Interval: time.Microsecond})
	stop := start(t, r)
	eventually(t, "replies", func() bool { return r.Result().Replies > 10_000 })
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := r.Verify(t.Context()); err != nil {
		t.Error(err)
	}
	if r.Result().LongestSilence <= 0 {
		t.Error("no silence was measured")
	}
	// What somebody else changes is noticed.
	for _, args := range [][]string{{"SET", "key:7", "x"}, {"DEL", "counter"}, {"PERSIST", "ttl:3"}} {
		conn, err := dialRedis(t.Context(), r.config)
		if err != nil {
			t.Fatal(err)
		}
		conn.send(args...)
		if _, err := conn.reply(); err != nil {
			t.Fatal(err)
		}
		conn.close()
		if err := r.Verify(t.Context()); err == nil || !strings.Contains(err.Error(), args[1][:3]) {
			t.Errorf("after %v: %v", args, err)
		}
		r.mu.Lock()
		r.values, r.counter = map[string]int64{}, 0
		r.mu.Unlock()
		conn, err = dialRedis(t.Context(), r.config)
		if err != nil {
			t.Fatal(err)
		}
		conn.send("SET", "counter", "0")
		if err := conn.expect("+OK"); err != nil {
			t.Fatal(err)
		}
		conn.close()
	}
}

// TestRedisWrongReply has a server that answers everything with OK.
func TestRedisWrongReply(t *testing.T) {
	address := serve(t, func(conn net.Conn) {
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			switch line := lines.Text(); {
			case strings.HasPrefix(line, "*"):
				conn.Write([]byte("+OK\r\n"))
			}
		}
	})
	err := NewRedis(RedisConfig{Address: address}).Run(t.Context())
	if !errors.Is(err, errReply) {
		t.Errorf("error %v", err)
	}
}
