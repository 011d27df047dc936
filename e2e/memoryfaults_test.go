//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"podd/fault/recovery"
	"podd/pod"
)

// newPostCopy is a scene whose move carries the rest of the memory when the pod
// runs already.
func newPostCopy(t *testing.T) *scene {
	t.Helper()
	s := newScene(t)
	s.flags = []string{"--strategy", "post-copy"}
	return s
}

// A podd is killed, or a connection severed, at the moments at which memory changes
// hands: the pod has it all in the end.
func TestMemoryFaults(t *testing.T) {
	for _, test := range []struct {
		point, action string
		want          recovery.Outcome
	}{
		{"source:presync", "kill", recovery.Stays},
		{"target:presync", "kill", recovery.Stays},
		{"source:dump", "kill", recovery.Stays},
		{"target:restore", "kill", recovery.Stays},
		{"source:restore-asked", "kill", recovery.Either},
		{"target:commit", "kill", recovery.Stays},
		{"source:committed", "kill", recovery.Goes},
		{"target:committed", "kill", recovery.Goes},
		{"target:resuming", "kill", recovery.Goes},
		{"target:unheard", "kill", recovery.Goes},
		{"source:memory", "kill", recovery.Goes},
		{"target:memory", "kill", recovery.Goes},
		{"target:resumed", "kill", recovery.Goes},
		{"source:transfer", "sever", recovery.Stays},
		{"source:committed", "sever", recovery.Goes},
	} {
		t.Run(test.point+"-"+test.action, func(t *testing.T) {
			s := newPostCopy(t)
			s.begin(test.point, test.action)
			if test.action == "kill" {
				restart(t, nodeOf(test.point))
			}
			s.requireOutcome(test.want)
		})
	}
}

// The pager is killed before the pod runs, or when it runs: another one goes on. So it
// does if what keeps its descriptors is killed, too, before the pod runs.
func TestPagerKilled(t *testing.T) {
	for _, test := range []struct {
		point  string
		keeper bool
	}{{"target:committed", false}, {"target:committed", true}, {"target:memory", false}} {
		t.Run(fmt.Sprintf("%s keeper %v", test.point, test.keeper), func(t *testing.T) {
			s := newPostCopy(t)
			s.begin(test.point, "stop")
			killPagers(t, "b", test.keeper)
			resume(t, "b")
			s.requireOutcome(recovery.Goes)
		})
	}
}

// pendingMove is a move that is committed while much of the pod's memory is on the
// source.
type pendingMove struct {
	*testPod
	conn *lineConn
	id   string
}

// newPending moves a pod from a to b that writes faster than the link carries.
func newPending(t *testing.T) *pendingMove {
	t.Helper()
	awaitHosts(t)
	p := newMemory(t, "", 16, 5000)
	m := &pendingMove{testPod: p, conn: dialLines(t, p.awaitPort(7000))}
	checkMemory(t, m.conn)
	fast := slowLink(t, "a", "20mbit")
	t.Cleanup(fast)
	m.id = strings.TrimSpace(mustPodctl(t, "move", "--detach", "--strategy", "post-copy", p.name, "b"))
	until(t, "the move is committed, and memory is to come", func() error {
		if now := journal(t, p.name)[0]; now.State != pod.MoveCommitted || !now.MemoryPending {
			return fmt.Errorf("it is %+v", now.moveView)
		}
		return nil
	})
	return m
}

// awaitStall waits until the pod stands still, and sees to it that this is told.
func (m *pendingMove) awaitStall() {
	m.t.Helper()
	until(m.t, "the pod stands still", func() error {
		if v := m.inspectElsewhere(); v.Arrival == nil || v.Arrival.Stalled == "" || v.Arrival.Missing == 0 {
			return fmt.Errorf("it is %+v", v)
		}
		return nil
	})
	if out := mustElsewhere(m.t, "ps"); !strings.Contains(out, "running (stalled)") {
		m.t.Errorf("podctl ps says %s", out)
	}
	r := run(m.t, podctlCommand(bounded(m.t), "c", "move", m.name, "c"))
	if want := "the memory of pod " + m.name + " is still arriving (move " + m.id + ")"; r.code != codeError || !strings.Contains(r.stderr, want) {
		m.t.Errorf("moving it on: exit code %d, %q; want %q", r.code, r.stderr, want)
	}
}

// mustElsewhere is mustPodctl by way of a host that has no part in the move.
func mustElsewhere(t *testing.T, args ...string) string {
	t.Helper()
	r := run(t, podctlCommand(bounded(t), "c", args...))
	if r.code != 0 {
		t.Fatalf("podctl %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

func (m *pendingMove) inspectElsewhere() (v podView) {
	m.t.Helper()
	parseJSON(m.t, mustElsewhere(m.t, "inspect", "-o", "json", m.name), &v)
	return v
}

// requireWhole waits until all memory has come, and checks it.
func (m *pendingMove) requireWhole() {
	m.t.Helper()
	until(m.t, "the move is done", func() error {
		if now := journal(m.t, m.name)[0]; now.State != pod.MoveDone || now.MemoryPending {
			return fmt.Errorf("it is %+v", now.moveView)
		}
		return nil
	})
	checkMemory(m.t, m.conn)
	until(m.t, "nothing is to come any more", func() error {
		if v := m.inspect(); v.Arrival != nil {
			return fmt.Errorf("the pod is %+v", v)
		}
		return nil
	})
	requireClean(m.t, m.name, m.inspect())
}

// While memory is to come, the source is lost for a while: the pod stands still
// and goes on with every page as it was.
func TestMemoryStalls(t *testing.T) {
	for name, lose := range map[string]func(t *testing.T) (find func()){
		"killed": func(t *testing.T) func() {
			kill(t, "a", unix.SIGKILL)
			if err := theLab.Wait(bounded(t), "a"); err != nil {
				t.Fatal(err)
			}
			return func() { bringUp(t, "a") }
		},
		"cut": func(t *testing.T) func() {
			if err := theLab.Partition("a", "b"); err != nil {
				t.Fatal(err)
			}
			heal := sync.OnceFunc(func() {
				if err := theLab.Heal("a", "b"); err != nil {
					t.Error(err)
				}
			})
			t.Cleanup(heal)
			return heal
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := newPending(t)
			find := lose(t)
			m.awaitStall()
			find()
			m.requireWhole()
		})
	}
}

// The target's podd is killed while memory is to come: the pod does not notice.
func TestTargetKilledWhilePending(t *testing.T) {
	m := newPending(t)
	m.conn.ask("running") // and not only about to
	kill(t, "b", unix.SIGKILL)
	m.conn.ask("while podd is away")
	restart(t, "b")
	m.requireWhole()
}

// A pod that stands still because the source is away can be removed, and then the
// source, back again, lets go of what it kept.
func TestStalledPodRemoved(t *testing.T) {
	m := newPending(t)
	kill(t, "a", unix.SIGKILL)
	if err := theLab.Wait(bounded(t), "a"); err != nil {
		t.Fatal(err)
	}
	m.awaitStall()
	mustElsewhere(t, "rm", "-f", m.name)
	m.removed = true
	bringUp(t, "a")
	until(t, "the move is done", func() error {
		if now := journal(t, m.name)[0]; now.State != pod.MoveDone {
			return fmt.Errorf("it is %+v", now.moveView)
		}
		return nil
	})
	requireTidy(t)
}

// killPagers kills every pager of a host, and with keepers the processes that keep
// their descriptors.
func killPagers(t *testing.T, node string, keepers bool) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(theLab.RunDir(node), "checkpoint", "memory-*", "meta.json"))
	if err != nil || len(found) == 0 {
		t.Fatalf("host %s has no pager: %v", node, err)
	}
	for _, file := range found {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		type process struct {
			PID int `json:"pid"`
		}
		var meta struct {
			Pager  process `json:"pager"`
			Keeper process `json:"keeper"`
		}
		parseJSON(t, string(data), &meta)
		if keepers {
			signalProcess(t, meta.Keeper.PID, unix.SIGKILL)
		}
		signalProcess(t, meta.Pager.PID, unix.SIGKILL)
	}
}
