package traffic

import (
	"context"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMeasures runs every measurement once, over the loopback device.
func TestMeasures(t *testing.T) {
	program, err := Build(context.Background(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const base = 17100
	server := exec.Command(program, "17100")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = server.Wait() // it was killed
	})
	c := &Client{Within: func(fn func() error) error { return fn() }, Server: netip.MustParseAddr("127.0.0.1"), Base: base}
	for deadline := time.Now().Add(10 * time.Second); ; {
		if s, err := c.dial(unix.SOCK_STREAM, answerPort); err == nil {
			s.close()
			break
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	const d = 20 * time.Millisecond
	for name, measure := range map[string]func() (float64, error){
		"send":     func() (float64, error) { return c.Send(d) },
		"receive":  func() (float64, error) { return c.Receive(d) },
		"connects": func() (float64, error) { return c.Connects(2, d) },
		"datagrams": func() (float64, error) {
			rate, lost, err := c.Datagrams(d)
			if lost < 0 || lost > 1 {
				t.Errorf("%v of the datagrams lost", lost)
			}
			return rate, err
		},
		"round trips": func() (float64, error) {
			took, err := c.RoundTrips(10)
			if len(took) != 10 {
				t.Errorf("%d round trips", len(took))
			}
			return 1, err
		},
	} {
		if rate, err := measure(); err != nil || rate <= 0 {
			t.Errorf("%s: %v, %v", name, rate, err)
		}
	}
}
