//go:build e2e

package e2e

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"testing"
)

//go:embed testdata/server.py
var pythonServer string

// newPython makes a pod with testdata/server.py, which calls itself name.
func newPython(t *testing.T, suffix, name string, port int) *testPod {
	t.Helper()
	return newPod(t, suffix, "--", "/usr/bin/python3", "-c", pythonServer, name, strconv.Itoa(port))
}

// countedBy is what a server of lines called name replies.
func countedBy(name string) func(n int, line string) string {
	return func(n int, line string) string { return fmt.Sprintf("%s %d %s", name, n, line) }
}

func TestAsyncio(t *testing.T) {
	server := newPython(t, "", "python", 7000)
	address := server.awaitPort(7000)
	quiet := dialLines(t, address)
	if got := quiet.ask("before"); got != "python 1 before" {
		t.Fatalf("reply %q", got)
	}
	busy := keepAsking(t, address, countedBy("python"))
	server.move("b")
	server.move("c")
	busy.stop()
	if got := quiet.ask("after"); got != "python 2 after" {
		t.Errorf("after two moves the idle connection has the reply %q", got)
	}
	// Timers run on: the event loop's other task does.
	ticks := func() string { return strings.Fields(quiet.ask("ticks"))[2] }
	before := ticks()
	until(t, "the server's timer has run", func() error {
		if now := ticks(); now == before {
			return fmt.Errorf("%s ticks", now)
		}
		return nil
	})
}

// Two pods are on one host and listen on the same port.
func TestSamePort(t *testing.T) {
	first := newPython(t, "first", "first", 7000)
	second := newPython(t, "second", "second", 7000)
	toFirst := keepAsking(t, first.awaitPort(7000), countedBy("first"))
	toSecond := keepAsking(t, second.awaitPort(7000), countedBy("second"))
	first.move("b")
	second.move("b")
	first.move("a")
	toFirst.stop()
	toSecond.stop()
	for _, p := range []*testPod{first, second} {
		name := strings.TrimPrefix(p.name, "sameport-")
		if got := dialLines(t, p.public(7000)).ask("new"); got != name+" 1 new" {
			t.Errorf("a new connection to %s has the reply %q", p.name, got)
		}
	}
}
