//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/e2e/workload"
	"podd/fault/recovery"
	"podd/pod"
)

// journalEntry is what these tests need of podctl move ls -o json.
type journalEntry struct {
	moveView
	Pod         string    `json:"pod"`
	Stage       pod.Stage `json:"stage"`
	FailedStage pod.Stage `json:"failedStage"`
	Error       string    `json:"error"`
}

// journal lists the moves, the newest first.
func journal(t *testing.T, pods ...string) []journalEntry {
	t.Helper()
	var moves []journalEntry
	parseJSON(t, run(t, podctlCommand(bounded(t), "c", append([]string{"move", "ls", "-o", "json"}, pods...)...)).stdout, &moves)
	return moves
}

// A move is cancelled, by way of a third host, while one side stands still at
// the beginning of a stage. Before the commit that undoes it, whichever side
// hears of it first; after it, it is too late.
func TestCancelAtEveryStage(t *testing.T) {
	for _, point := range []string{
		"source:reserve", "source:presync", "source:hold", "source:freeze", "source:dump", "source:transfer", "source:restore",
		"target:presync", "target:dump", "target:transfer", "target:restore", "target:commit",
	} {
		t.Run(point, func(t *testing.T) {
			s := newScene(t)
			s.begin(point, "stop")
			id := journal(t, s.pod.name)[0].ID
			answer := make(chan result, 1)
			go func() {
				answer <- run(t, podctlCommand(bounded(t), "c", "move", "cancel", "--reason", "for the test", id))
			}()
			until(t, "the move is cancelled", func() error {
				if m := journal(t, s.pod.name)[0]; m.State != pod.MoveAborted {
					return fmt.Errorf("it is %s", m.State)
				}
				return nil
			})
			resume(t, nodeOf(point))
			r := <-answer
			if r.code != 0 || !strings.Contains(r.stdout, s.pod.name+" goes on running on a") {
				t.Errorf("cancelling: exit code %d: %s%s", r.code, r.stdout, r.stderr)
			}
			after := s.requireOutcome(recovery.Stays)
			if after.Epoch != s.before.Epoch {
				t.Errorf("the pod is %+v; it was %+v", after, s.before)
			}
			const want = "cancelled by local root (admin): for the test"
			if m := journal(t, s.pod.name)[1]; m.Error != want {
				t.Errorf("the journal says %+v", m)
			}
			if s.ended.code != codeError || !strings.Contains(s.ended.stderr, want) {
				t.Errorf("the move ended with %d: %s", s.ended.code, s.ended.stderr)
			}
		})
	}
	for _, point := range []string{"target:committed", "source:committed", "source:release"} {
		t.Run(point, func(t *testing.T) {
			s := newScene(t)
			s.begin(point, "stop")
			r := run(t, podctlCommand(bounded(t), "c", "move", "cancel", journal(t, s.pod.name)[0].ID))
			resume(t, nodeOf(point))
			if want := fmt.Sprintf("it is too late to cancel move %s: pod %s is on host b", journal(t, s.pod.name)[0].ID, s.pod.name); r.code != codeError || !strings.Contains(r.stderr, want) {
				t.Errorf("exit code %d, %q; want %q", r.code, r.stderr, want)
			}
			s.requireOutcome(recovery.Goes)
		})
	}
}

// longDump is a pod whose memory takes longer to cross than any test waits, and
// a client that talks to it all the time.
type longDump struct {
	*testPod
	before     podView
	connection *load
	stream     *workload.TCP
	fast       func()
}

func newLongDump(t *testing.T) *longDump {
	t.Helper()
	p := newLoadgen(t, "", "serve-tcp", "-listen", ":7000", "-rate", fmt.Sprint(faultRate))
	address := p.awaitPort(7000)
	p.shell(`python3 -c 'import os, time
b = os.urandom(80 << 20)
open("/run/full", "w").close()
time.sleep(100000)' >/dev/null 2>&1 </dev/null & while [ ! -e /run/full ]; do sleep 0.05; done`)
	stream := workload.NewTCP(workload.TCPConfig{Address: address, Dial: fromClient, Rate: faultRate, Seed: 1})
	l := &longDump{testPod: p, stream: stream, connection: startLoad(t, stream), before: p.inspect()}
	// Below the time that podd lets a pod be frozen for its transfer.
	l.fast = slowLink(t, "a", "30mbit")
	return l
}

// awaitFrozen returns when nothing has come from the pod for a while.
func (l *longDump) awaitFrozen() {
	l.t.Helper()
	var last int64
	var since time.Time
	until(l.t, "the pod is frozen", func() error {
		if n := l.stream.Result().Received; n != last {
			last, since = n, time.Now()
		}
		if quiet := time.Since(since); quiet < 300*time.Millisecond {
			return fmt.Errorf("it has been quiet for %v", quiet)
		}
		return nil
	})
}

// requireUndone fails the test unless the pod is as it was, and moves on when
// it is let.
func (l *longDump) requireUndone(t *testing.T) {
	t.Helper()
	requireFlow(t, l.stream, faultRate)
	if now := l.inspect(); now.Host != "a" || now.Epoch != l.before.Epoch || now.Phase != pod.PhaseRunning {
		t.Errorf("the pod is %+v; it was %+v", now, l.before)
	}
	requireClean(t, l.name, l.before)
}

func (l *longDump) finish(t *testing.T) {
	t.Helper()
	l.fast()
	l.move("b")
	requireFlow(t, l.stream, faultRate)
	l.connection.finish()
}

// The pod of a move that is cancelled while it is frozen goes on at once.
func TestCancelWhileFrozen(t *testing.T) {
	l := newLongDump(t)
	id := strings.TrimSpace(mustPodctl(t, "move", "--detach", "--strategy", "stop-copy", l.name, "b"))
	l.awaitFrozen()
	before := l.stream.Result().Received
	began := time.Now()
	cancelled := make(chan result, 1)
	go func() { cancelled <- run(t, podctlCommand(bounded(t), "c", "move", "--cancel", id)) }()
	for l.stream.Result().Received == before && time.Since(began) < commandTimeout {
		<-time.After(time.Millisecond)
	}
	t.Logf("the pod speaks %v after podctl was called to cancel the move", time.Since(began).Round(time.Millisecond))
	if r := <-cancelled; r.code != 0 {
		t.Errorf("cancelling: exit code %d: %s", r.code, r.stderr)
	}
	t.Logf("podctl ended after %v", time.Since(began).Round(time.Millisecond))
	if m := journal(t, l.name)[0]; m.FailedStage != pod.StageDump || m.Error != "cancelled by local root (admin)" {
		t.Errorf("the journal says %+v", m)
	}
	l.requireUndone(t)
	// Who waits for it now, hears of it at once.
	requireRefused(t, codeError, []string{"stage dump failed: cancelled by local root", l.name + " goes on running on a"}, "move", "wait", id)
	l.finish(t)
}

func TestInterruptedMove(t *testing.T) {
	l := newLongDump(t)
	term := startOnTerminal(t, podctlCommand(bounded(t), "a", "move", "--strategy", "stop-copy", l.name, "b"))
	term.expect("dump")
	l.awaitFrozen()
	term.keys("\x03")
	term.expect("having the move undone")
	term.expect(": SIGINT to podctl")
	term.expect(l.name + " goes on running on a")
	if code := term.wait(); code != 130 {
		t.Errorf("exit code %d; want 130", code)
	}
	l.requireUndone(t)
	l.finish(t)
}

// A move whose ID nobody was told is given up when its caller goes away.
func TestInterruptedPreflight(t *testing.T) {
	p := newBystander(t)
	earlier := journal(t, p.name) // of a pod that had its name, if the test is repeated
	file := filepath.Join(theLab.RunDir("b"), "faults")
	if err := os.WriteFile(file, []byte("target:preflight stop\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theLab.Kill("b", unix.SIGCONT); os.Remove(file) })
	term := startOnTerminal(t, podctlCommand(bounded(t), "a", "move", p.name, "b"))
	term.expect("preflight")
	awaitStopped(t, "b")
	term.keys("\x03")
	term.expect("having the move undone")
	term.keys("\x03")
	term.expect("the move had not begun; podd gives it up")
	if code := term.wait(); code != 130 {
		t.Errorf("exit code %d; want 130", code)
	}
	resume(t, "b")
	p.requireUndisturbed(t)
	if moves := journal(t, p.name); len(moves) != len(earlier) {
		t.Errorf("a move was opened: %+v", moves[0])
	}
	p.move("b")
	p.conn.ask("moved")
}

// A move that takes longer than its user allows is undone, with all bytes of
// the connection in place.
func TestMoveLimits(t *testing.T) {
	l := newLongDump(t)
	for flag, want := range map[string]string{
		"--timeout=8s":      "stage dump failed: timeout of 8s exceeded: the move was given up after ",
		"--max-downtime=3s": "stage dump failed: max-downtime of 3s exceeded: the pod was frozen for ",
	} {
		requireRefused(t, codeError, []string{want, l.name + " goes on running on a"}, "move", "--strategy", "stop-copy", flag, l.name, "b")
		l.requireUndone(t)
	}
	l.fast()
	// Neither matters where there is time enough.
	mustPodctl(t, "move", "--timeout", "1m", "--max-downtime", "1m", l.name, "b")
	requireFlow(t, l.stream, faultRate)
	l.connection.finish()
}

// A move that is left to podd is waited for at another host.
func TestDetachAndWait(t *testing.T) {
	p := newLoadgen(t, "", "serve-tcp", "-listen", ":7000")
	load := startLoad(t, workload.NewTCP(workload.TCPConfig{Address: p.awaitPort(7000), Dial: fromClient}))
	id := strings.TrimSpace(mustPodctl(t, "move", "-d", p.name, "b"))
	r := run(t, podctlCommand(bounded(t), "c", "move", "wait", "-o", "json", id))
	if r.code != 0 {
		t.Fatalf("exit code %d: %s", r.code, r.stderr)
	}
	var m moveView
	parseJSON(t, r.stdout, &m)
	if m.ID != id || m.State != pod.MoveDone || m.Receipt == nil || p.inspect().Host != "b" {
		t.Errorf("the move ended as %s", r.stdout)
	}
	load.finish()
}

// Many pods move between two hosts that allow two moves at a time each, in both
// directions: no more go on at once, none waits for ever.
func TestManyMovesAtOnce(t *testing.T) {
	const limit = "2"
	restartDaemon(t, "a", "--max-moves", limit)
	restartDaemon(t, "b", "--max-moves", limit)
	var pods []*testPod
	var ids []string
	for i := range 6 {
		pods = append(pods, newPythonOn(t, []string{"a", "b"}[i%2], fmt.Sprint(i), fmt.Sprint(i), 7000))
	}
	var conns []*lineConn
	for _, p := range pods {
		conns = append(conns, dialLines(t, p.awaitPort(7000)))
	}
	for i, p := range pods {
		ids = append(ids, strings.TrimSpace(mustPodctl(t, "move", "--detach", p.name, []string{"b", "a"}[i%2])))
	}
	most, queued := 0, 0
	until(t, "all moves are done", func() error {
		running, waiting, open := 0, 0, 0
		for _, m := range journal(t) {
			switch m.State {
			case pod.MoveRunning:
				running++
			case pod.MoveQueued:
				waiting++
			}
			if slices.Contains(ids, m.ID) && m.State != pod.MoveDone {
				open++
			}
		}
		most, queued = max(most, running), max(queued, waiting)
		if open > 0 {
			return fmt.Errorf("%d are not: %+v", open, journal(t)[:len(ids)])
		}
		return nil
	})
	t.Logf("at most %d moves went on at once, %d waited", most, queued)
	if most > 2 || queued == 0 {
		t.Errorf("%d moves went on at once and %d waited; want at most %s, and some", most, queued, limit)
	}
	for i, p := range pods {
		if got := conns[i].ask("moved"); got != fmt.Sprintf("%d 1 moved", i) {
			t.Errorf("reply %q", got)
		}
		if v := p.inspect(); v.Host != []string{"b", "a"}[i%2] {
			t.Errorf("pod %s is on %s", p.name, v.Host)
		}
	}
	requireTidy(t)
}

// A move that waits for its turn can be seen, cancelled and bounded, does not
// keep its pod from anything, and is refused to be asked for twice.
func TestQueuedMove(t *testing.T) {
	restartDaemon(t, "a", "--max-moves", "1")
	l := newLongDump(t)
	p := newPython(t, "waits", "waits", 7000)
	conn := dialLines(t, p.awaitPort(7000))
	first := strings.TrimSpace(mustPodctl(t, "move", "--detach", l.name, "b"))
	queued := strings.TrimSpace(mustPodctl(t, "move", "--detach", p.name, "c"))
	if m := journal(t, p.name)[0]; m.State != pod.MoveQueued || m.Stage != pod.StageQueued {
		t.Fatalf("the second move is %+v", m)
	}
	requireRefused(t, codeError, []string{"is being moved already (move " + queued + ")"}, "move", p.name, "b")
	if v := p.inspect(); v.Phase != pod.PhaseRunning || conn.ask("hello") != "waits 1 hello" {
		t.Errorf("the pod that waits is %+v", v)
	}
	mustPodctl(t, "move", "cancel", queued)
	requireRefused(t, codeError, []string{"stage queued failed: timeout of 3s exceeded", p.name + " goes on running on a"},
		"move", "--timeout", "3s", p.name, "c")
	// Its pod ends; nobody waits for it any more.
	third := strings.TrimSpace(mustPodctl(t, "move", "--detach", p.name, "c"))
	mustPodctl(t, "rm", "-f", p.name)
	p.removed = true
	requireRefused(t, codeError, []string{"the pod has ended"}, "move", "wait", third)
	mustPodctl(t, "move", "cancel", first)
	l.requireUndone(t)
	l.finish(t)
}
