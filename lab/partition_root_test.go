//go:build root

package lab

import (
	"bytes"
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// requireReach checks whether one node's packets get an answer of another: that
// nobody listens is one, too.
func requireReach(t *testing.T, l *Lab, from, to string, want bool) {
	t.Helper()
	const unused = "9"
	patience := 300 * time.Millisecond
	if want {
		patience = 30 * time.Second
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := l.Dial(ctx, from, "tcp", net.JoinHostPort(l.Address(to).String(), unused))
	if err == nil {
		conn.Close()
	}
	if got := errors.Is(err, unix.ECONNREFUSED); got != want {
		t.Errorf("%s reaches %s: %v, want %v (%v)", from, to, got, want, err)
	}
}

func TestRootPartition(t *testing.T) {
	l := newNetwork(t, Options{Hosts: 3})
	rules := func() []byte {
		out, err := l.Command(Router, "iptables", "-S").Output()
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	untouched := rules()
	for range 2 { // the second time it is so already
		if err := l.Partition("a", "b"); err != nil {
			t.Fatal(err)
		}
	}
	requireReach(t, l, "a", "b", false)
	requireReach(t, l, "b", "a", false)
	requireReach(t, l, "a", "c", true)
	for range 2 {
		if err := l.Heal("b", "a"); err != nil { // the order does not matter
			t.Fatal(err)
		}
	}
	requireReach(t, l, "a", "b", true)
	if now := rules(); !bytes.Equal(now, untouched) {
		t.Errorf("left at the router:\n%s\nbefore:\n%s", now, untouched)
	}

	if err := l.Isolate(Proxy); err != nil {
		t.Fatal(err)
	}
	requireReach(t, l, Client, Proxy, false)
	requireReach(t, l, "c", Proxy, false)
	requireReach(t, l, "a", "c", true)
	if err := errors.Join(l.Rejoin(Proxy), l.Partition("a", "c"), l.Partition("b", Client), l.HealAll()); err != nil {
		t.Fatal(err)
	}
	requireReach(t, l, Client, Proxy, true)
	requireReach(t, l, "a", "c", true)
	for _, pair := range [][2]string{{"a", "a"}, {"a", Router}, {"a", "z"}} {
		if err := l.Partition(pair[0], pair[1]); !errors.Is(err, pod.ErrInvalid) && !errors.Is(err, pod.ErrNotFound) {
			t.Errorf("parting %v: error %v", pair, err)
		}
	}
}
