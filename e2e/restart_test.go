//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podd/lab"
	"podd/pod"
)

// downtime ends a node's daemon by a signal, calls meanwhile and starts the
// daemon again.
func downtime(t *testing.T, node string, signal unix.Signal, meanwhile func()) {
	t.Helper()
	start := func() {
		t.Helper()
		if err := theLab.Start(bounded(t), node); err != nil && !errors.Is(err, pod.ErrExists) {
			t.Fatal(err)
		}
	}
	t.Cleanup(start)
	if err := errors.Join(theLab.Kill(node, signal), theLab.Wait(bounded(t), node)); err != nil {
		t.Fatal(err)
	}
	meanwhile()
	start()
}

// endings are the ways in which a daemon comes to its end.
var endings = []unix.Signal{unix.SIGKILL, unix.SIGTERM}

// The host's podd ends and is started again, under pods that are in use.
func TestPoddRestart(t *testing.T) {
	for _, signal := range endings {
		t.Run(unix.SignalName(signal), func(t *testing.T) {
			server := newPython(t, "server", "python", 7000)
			writer := newShell(t, "writer", counter)
			connection := keepAsking(t, server.awaitPort(7000), countedBy("python"))
			// The podd of c passes calls on to where the pod is.
			logs := follow(t, podctlCommand(bounded(t), "c", "logs", "-f", writer.name))
			shell := startOnTerminal(t, podctlCommand(bounded(t), "c", "exec", "-it", server.name, "--", "bash", "--norc"))
			pid := shell.answer("$$")
			for _, host := range []string{"a", "b"} {
				before := server.inspect()
				downtime(t, host, signal, func() {
					connection.awaitRounds(100)
				})
				if after := server.inspect(); after != before {
					t.Errorf("after the restart of host %s the pod is %+v; it was %+v", host, after, before)
				}
				if got := server.exec("echo", "hello"); got != "hello" {
					t.Errorf("echo hello: %q", got)
				}
				if got := shell.answer("$$"); got != pid {
					t.Errorf("the shell's process is %s, it was %s", got, pid)
				}
				logs.await("logs -f", 10)
				next := map[string]string{"a": "b", "b": "a"}[host]
				server.move(next)
				writer.move(next)
				logs.await("logs -f", 10)
			}
			connection.stop()
			// The end of a pod is noticed, too, by a podd that did not start it.
			downtime(t, "a", signal, func() {})
			mustPodctl(t, "kill", "--signal", "KILL", writer.name)
			if out := strings.TrimSpace(podctl(t, "wait", writer.name).stdout); out != "137" {
				t.Errorf("podctl wait says %q; want 137", out)
			}
		})
	}
}

// A pod's main command ends while podd is down.
func TestEndWithoutPodd(t *testing.T) {
	p := newPython(t, "", "python", 7000)
	conn := dialLines(t, p.awaitPort(7000))
	conn.ask("hello")
	downtime(t, "a", unix.SIGKILL, func() {
		conn.ask("quit 3")
		if reply, err := conn.roundTrip("more"); err == nil {
			t.Errorf("the server that was to end replies %q", reply)
		}
	})
	v := p.inspect()
	if v.Phase != pod.PhaseStopped || v.ExitCode == nil || *v.ExitCode != 3 {
		t.Errorf("the pod is %+v; want it stopped with exit code 3", v)
	}
}

// The proxy ends and is started again, and the directory with it.
func TestPodproxyRestart(t *testing.T) {
	for _, signal := range endings {
		t.Run(unix.SignalName(signal), func(t *testing.T) {
			server := newPython(t, "", "python", 7000)
			address := server.awaitPort(7000)
			connection := keepAsking(t, address, countedBy("python"))
			shell := onTerminal(t, "exec", "-it", server.name, "--", "bash", "--norc")
			pid := shell.answer("$$")
			downtime(t, lab.Proxy, signal, func() {
				connection.awaitRounds(100)
				// The kernel knows the way to the pod, also for new ones.
				if got := dialLines(t, address).ask("new"); got != "python 1 new" {
					t.Errorf("reply %q", got)
				}
				if got := shell.answer("$$"); got != pid {
					t.Errorf("the shell's process is %s, it was %s", got, pid)
				}
			})
			connection.awaitRounds(100)
			name := server.name + "." + lab.Zone
			until(t, "the pod's name is known again", func() error {
				got := inClient(t, "dig", "+short", "@"+theLab.Address(lab.Proxy).String(), name)
				if !strings.HasPrefix(address, strings.TrimSpace(got)+":") {
					return fmt.Errorf("it is %q", got)
				}
				return nil
			})
			server.move("b")
			connection.stop()
			if got := dialLines(t, address).ask("new"); got != "python 1 new" {
				t.Errorf("reply %q", got)
			}
		})
	}
}
