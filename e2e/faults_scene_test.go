//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/e2e/workload"
	"podd/fault/recovery"
	"podd/lab"
	"podd/pod"
	"podd/procfs"
)

// scene is a move from a to b in which something is to fail, of a pod that a
// client talks to all the time.
type scene struct {
	t      *testing.T
	pod    *testPod
	before podView
	// old is the connection that the move meets.
	old        *workload.TCP
	connection *load
	said       *speech
	command    chan result
	ended      *result
	// flags are for the command that moves the pod.
	flags []string
}

// faultRate is what goes each way through a connection, in bytes a second.
const faultRate = 128 << 10

func newScene(t *testing.T) *scene {
	t.Helper()
	awaitHosts(t)
	p := newLoadgen(t, "", "serve-tcp", "-listen", ":7000", "-rate", fmt.Sprint(faultRate))
	old := workload.NewTCP(workload.TCPConfig{Address: p.awaitPort(7000), Dial: fromClient, Rate: faultRate, Seed: 1})
	s := &scene{t: t, pod: p, old: old, connection: startLoad(t, old), command: make(chan result, 1)}
	s.before = p.inspect()
	s.said = listen(t)
	return s
}

// begin begins the move, and returns when a fault has been injected at a point:
// by the action "stop" the daemon stands still there.
func (s *scene) begin(point, action string) {
	s.t.Helper()
	node := nodeOf(point)
	file := filepath.Join(theLab.RunDir(node), "faults")
	if err := os.WriteFile(file, []byte(point+" "+action+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		if err := os.Remove(file); err != nil {
			s.t.Error(err)
		}
	})
	go func() {
		s.command <- run(s.t, podctlCommand(bounded(s.t), "a", append(append([]string{"move"}, s.flags...), s.pod.name, "b")...))
	}()
	until(s.t, "the fault has been injected", func() error {
		data, err := os.ReadFile(file)
		if err == nil && len(data) > 0 {
			err = errors.New("it is still to come")
		}
		return err
	})
	if action == "stop" {
		s.t.Cleanup(func() { theLab.Kill(node, unix.SIGCONT) }) // if the test fails before
		awaitStopped(s.t, node)
	}
}

// nodeOf is where a point of package fault is.
func nodeOf(point string) string {
	switch side, _, _ := strings.Cut(point, ":"); side {
	case "source":
		return "a"
	case "target":
		return "b"
	}
	return lab.Proxy
}

// await waits until the command has ended, or for a time that is not zero; it
// reports whether the command has.
func (s *scene) await(limit time.Duration) bool {
	s.t.Helper()
	if s.ended != nil {
		return true
	}
	wait := limit
	if limit == 0 {
		wait = commandTimeout
	}
	select {
	case r := <-s.command:
		s.ended = &r
		return true
	case <-time.After(wait):
		if limit == 0 {
			s.t.Fatal("the command does not end")
		}
		return false
	}
}

// requireOutcome waits for the end of everything and checks it: the pod is in
// one place, the one expected, with nothing left anywhere else; its connection
// goes on, another one can be made, nobody was told of any trouble, and only one
// copy has ever spoken at a time. In the end the pod moves on.
func (s *scene) requireOutcome(want recovery.Outcome) podView {
	s.t.Helper()
	s.await(0)
	s.t.Logf("the move ended with %d: %s", s.ended.code, strings.TrimSpace(s.ended.stderr))
	after := awaitSettled(s.t, s.pod)
	if want == recovery.Stays && after.Host != "a" || want == recovery.Goes && after.Host != "b" {
		s.t.Errorf("the pod is on host %s; in this cell it %s", after.Host, want)
	}
	requireFlow(s.t, s.old, faultRate)
	second := startLoad(s.t, workload.NewTCP(workload.TCPConfig{Address: s.pod.public(7000), Dial: fromClient, Rate: faultRate, Seed: 2}))
	second.finish()
	s.said.requireOrder(s.t, s.before, after)
	requireClean(s.t, s.pod.name, after)

	awaitHosts(s.t) // who was away may need a moment to be registered again
	until(s.t, "the move is closed", func() error {
		if m := journal(s.t, s.pod.name); len(m) > 0 && (m[0].State == pod.MoveRunning || m[0].State == pod.MoveCommitted) {
			return fmt.Errorf("it is %s", m[0].State)
		}
		return nil
	})
	back := map[string]string{"a": "b", "b": "a"}[after.Host]
	s.pod.move(back)
	requireFlow(s.t, s.old, faultRate)
	s.connection.finish()
	s.t.Logf("the longest silence was %v", s.old.Result().LongestSilence.Round(time.Millisecond))
	return after
}

// resume lets a daemon go on.
func resume(t *testing.T, node string) {
	t.Helper()
	if err := theLab.Kill(node, unix.SIGCONT); err != nil {
		t.Error(err)
	}
}

// restart starts a daemon that ends.
func restart(t *testing.T, node string) {
	t.Helper()
	if err := theLab.Wait(bounded(t), node); err != nil {
		t.Fatal(err)
	}
	bringUp(t, node)
}

// bringUp starts a daemon unless it runs.
func bringUp(t *testing.T, node string) {
	t.Helper()
	if err := theLab.Start(bounded(t), node, startFlags[node]...); err != nil && !errors.Is(err, pod.ErrExists) {
		t.Fatal(err)
	}
}

// startFlags are those that daemons are to be started with for now, by node.
var startFlags = map[string][]string{}

// awaitStopped waits until a daemon stands still.
func awaitStopped(t *testing.T, node string) {
	t.Helper()
	pid, err := theLab.PID(node)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the daemon of "+node+" is stopped", func() error {
		stat, err := procfs.ReadStat(pid)
		if err == nil && stat.State != 'T' {
			err = fmt.Errorf("it is not: %+v", stat)
		}
		return err
	})
}

// awaitSettled waits until no move of the pod is under way.
func awaitSettled(t *testing.T, p *testPod) podView {
	t.Helper()
	var v podView
	until(t, "the move is decided", func() error {
		r := podctl(t, "inspect", "-o", "json", p.name)
		if r.code != 0 { // the directory may be on its way back
			return errors.New(r.stderr)
		}
		if parseJSON(t, r.stdout, &v); v.Phase != pod.PhaseRunning {
			return fmt.Errorf("the pod is %s", v.Phase)
		}
		return nil
	})
	return v
}

// awaitHosts waits until every host is known to be alive.
func awaitHosts(t *testing.T) {
	t.Helper()
	until(t, "all hosts are alive", func() error {
		var hosts []hostView
		parseJSON(t, mustPodctl(t, "host", "ls", "-o", "json"), &hosts)
		for _, h := range hosts {
			if !h.Alive {
				return fmt.Errorf("host %s counts as down", h.Name)
			}
		}
		return nil
	})
}

// requireFlow fails the test if nothing new comes through a connection, at a quarter of
// a second's worth.
func requireFlow(t *testing.T, c *workload.TCP, rate int64) {
	t.Helper()
	before := c.Result().Received
	until(t, "the connection goes on", func() error {
		if n := c.Result().Received - before; n < rate/4 {
			return fmt.Errorf("%d bytes came", n)
		}
		return nil
	})
}

// requireTold fails the test if the command did not say where the pod is.
func (s *scene) requireTold(host string) {
	s.t.Helper()
	if moved := s.ended.code == 0; moved != (host == "b") {
		s.t.Errorf("the pod is on host %s, but the command ended with %d", host, s.ended.code)
	}
}
