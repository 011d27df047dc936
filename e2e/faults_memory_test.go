//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podd/lab"
	"podd/pod"
)

// arrival is a pod that runs on host b, while much of its memory is still on its
// way there, or at its source, host a.
type arrival struct {
	*testPod
	before podView
	conn   *lineConn
	// fast ends that the memory takes long.
	fast func()
}

// arrivingView is what these tests need of a pod's or a move's memory to come.
type arrivingView struct {
	Host          string        `json:"host"`
	State         pod.MoveState `json:"state"`
	MemoryPending bool          `json:"memoryPending"`
	Arrival       *struct {
		Missing int64  `json:"missingBytes"`
		Stalled string `json:"stalled"`
	} `json:"arrival"`
}

// newArrival moves a pod that writes faster than the link can follow, and makes the
// link so slow when it runs on b that the rest takes as long as the test likes.
func newArrival(t *testing.T) *arrival {
	t.Helper()
	awaitHosts(t)
	p := newChanging(t, "", 2, 2, 6, 800)
	a := &arrival{testPod: p, conn: dialLines(t, p.awaitPort(7000))}
	checkMemory(t, a.conn)
	t.Cleanup(func() { // if the test fails before
		for _, node := range theLab.Daemons() {
			bringUp(t, node)
		}
	})
	a.before = p.inspect()
	fast := slowLink(t, "a", "60mbit")
	mustPodctl(t, "move", "--detach", "--strategy", "post-copy", p.name, "b")
	until(t, "the pod runs on host b", func() error {
		if m := a.moved(); m.State != pod.MoveCommitted {
			return fmt.Errorf("the move is %+v", m)
		}
		return nil
	})
	a.fast = fast
	inNode(t, "a", "tc", "qdisc", "replace", "dev", "uplink", "root", "tbf", "rate", "1mbit", "burst", "32kb", "latency", "50ms")
	if m := a.moved(); !m.MemoryPending {
		t.Fatalf("all the memory is there already: %+v", m)
	}
	return a
}

// moved is the pod's last move, as the journal has it, if there is one.
func (a *arrival) moved() arrivingView {
	a.t.Helper()
	var moves []arrivingView
	parseJSON(a.t, run(a.t, podctlCommand(bounded(a.t), "c", "move", "ls", "-o", "json", a.name)).stdout, &moves)
	if len(moves) == 0 {
		return arrivingView{}
	}
	return moves[0]
}

// awaitStalled waits until the pod's loss is known to who looks at it.
func (a *arrival) awaitStalled() {
	a.t.Helper()
	until(a.t, "the pod stands still, and is known to", func() error {
		var v arrivingView
		parseJSON(a.t, run(a.t, podctlCommand(bounded(a.t), "b", "inspect", "-o", "json", a.name)).stdout, &v)
		if v.Arrival == nil || v.Arrival.Stalled == "" || v.Arrival.Missing == 0 {
			return fmt.Errorf("it is %+v", v)
		}
		if m := a.moved(); m.Arrival == nil || m.Arrival.Stalled == "" {
			return fmt.Errorf("its move is %+v", m)
		}
		return nil
	})
	if ps := run(a.t, podctlCommand(bounded(a.t), "b", "ps")).stdout; !strings.Contains(ps, "stalled") {
		a.t.Errorf("podctl ps does not say that the pod stands still:\n%s", ps)
	}
	doctor := run(a.t, podctlCommand(bounded(a.t), "b", "doctor"))
	if said := doctor.stdout + doctor.stderr; !strings.Contains(said, "pod "+a.name+" stands still") {
		a.t.Errorf("podctl doctor does not say that the pod stands still:\n%s", said)
	}
	freezers, err := filepath.Glob(filepath.Join("/sys/fs/cgroup/freezer", theLab.CgroupParent("b"), a.name+".*", "freezer.state"))
	for _, file := range freezers {
		if state, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(state)) == "THAWED" {
			a.t.Errorf("the pod's cgroup is %q: %v", state, err)
		}
	}
	if err != nil {
		a.t.Error(err)
	}
}

// requireWhole lets the memory come and checks that the pod has all of it, that its
// connection lives, that nothing is left behind, and that it moves on.
func (a *arrival) requireWhole() {
	a.t.Helper()
	a.fast()
	until(a.t, "the memory is complete", func() error {
		if m := a.moved(); m.MemoryPending || m.State != pod.MoveDone {
			return fmt.Errorf("the move is %+v", m)
		}
		return nil
	})
	checkMemory(a.t, a.conn)
	after := a.inspect()
	if after.Host != "b" || after.Epoch <= a.before.Epoch || after.Phase != pod.PhaseRunning {
		a.t.Errorf("the pod is %+v; it was %+v", after, a.before)
	}
	requireClean(a.t, a.name, after)
	awaitHosts(a.t)
	a.moveBy(pod.StrategyPostCopy, "c")
	checkMemory(a.t, a.conn)
}

// onTarget runs podctl by way of host b, since the others may not be reached; it has
// to succeed.
func (a *arrival) onTarget(args ...string) {
	a.t.Helper()
	if r := run(a.t, podctlCommand(bounded(a.t), "b", args...)); r.code != 0 {
		a.t.Fatalf("podctl %s: %+v", strings.Join(args, " "), r)
	}
}

// requireRemoved removes the pod and checks that no host has anything of it.
func (a *arrival) requireRemoved() {
	a.t.Helper()
	a.onTarget("rm", "-f", a.name)
	a.removed = true
	a.fast()
	requireClean(a.t, a.name, podView{})
}

// frozenCopy is the processes of the incarnation at the source.
func (a *arrival) frozenCopy() (pids []int, freezer string) {
	a.t.Helper()
	dir := filepath.Join("/sys/fs/cgroup/freezer", theLab.CgroupParent("a"), fmt.Sprintf("%s.%d", a.name, a.before.Epoch))
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		a.t.Fatal(err)
	}
	for field := range strings.FieldsSeq(string(data)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			a.t.Fatal(err)
		}
		pids = append(pids, pid)
	}
	if len(pids) == 0 {
		a.t.Fatalf("nothing is left of the copy at the source: %s is empty", dir)
	}
	return pids, dir
}

// killCopy kills what is left of the pod at its source: with it the memory is lost
// that has not come yet.
func (a *arrival) killCopy() {
	a.t.Helper()
	pids, dir := a.frozenCopy()
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			a.t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0); err != nil {
		a.t.Fatal(err)
	}
}

// memoryFaults are what may happen while memory follows a pod. Each says, by what it
// calls, what becomes of the pod: it is whole in the end, or gone.
var memoryFaults = []struct {
	name string
	run  func(a *arrival)
}{
	{"source killed", func(a *arrival) {
		kill(a.t, "a", unix.SIGKILL)
		a.awaitStalled()
		a.fast()
		restart(a.t, "a")
		a.requireWhole()
	}},
	{"source lost for good", func(a *arrival) {
		kill(a.t, "a", unix.SIGKILL)
		a.killCopy()
		a.awaitStalled()
		a.onTarget("rm", "-f", a.name)
		a.removed = true
		a.fast()
		restart(a.t, "a")
		requireClean(a.t, a.name, podView{})
	}},
	{"source's copy killed", func(a *arrival) {
		a.killCopy()
		a.fast()
		a.awaitStalled()
		a.requireRemoved()
	}},
	{"target killed", func(a *arrival) {
		kill(a.t, "b", unix.SIGKILL)
		restart(a.t, "b")
		a.requireWhole()
	}},
	{"both killed", func(a *arrival) {
		kill(a.t, "a", unix.SIGKILL)
		kill(a.t, "b", unix.SIGKILL)
		restart(a.t, "b")
		a.fast()
		restart(a.t, "a")
		a.requireWhole()
	}},
	{"pager killed", func(a *arrival) {
		killPagers(a.t, "b", false)
		a.requireWhole()
	}},
	{"pager and target killed", func(a *arrival) {
		kill(a.t, "b", unix.SIGKILL)
		killPagers(a.t, "b", false)
		restart(a.t, "b")
		a.requireWhole()
	}},
	{"podproxy killed", func(a *arrival) {
		kill(a.t, lab.Proxy, unix.SIGKILL)
		restart(a.t, lab.Proxy)
		a.requireWhole()
	}},
	{"source stopped", func(a *arrival) {
		kill(a.t, "a", unix.SIGSTOP)
		a.t.Cleanup(func() { theLab.Kill("a", unix.SIGCONT) })
		pass(stopTime)
		resume(a.t, "a")
		a.requireWhole()
	}},
	{"hosts cut for a short time", func(a *arrival) {
		heal := part(a.t, "a", "b")
		pass(stopTime)
		heal()
		a.requireWhole()
	}},
	{"hosts cut", func(a *arrival) {
		heal := part(a.t, "a", "b")
		a.awaitStalled()
		pass(cutTime)
		heal()
		a.requireWhole()
	}},
	{"pod killed", func(a *arrival) {
		a.onTarget("kill", "--signal", "KILL", a.name)
		a.requireRemoved()
	}},
	{"pod stopped", func(a *arrival) {
		a.onTarget("stop", "--time", "1", a.name)
		a.requireRemoved()
	}},
	{"pod removed while it stands still", func(a *arrival) {
		heal := part(a.t, "a", "b")
		a.awaitStalled()
		a.onTarget("rm", "-f", a.name)
		a.removed = true
		heal()
		a.fast()
		requireClean(a.t, a.name, podView{})
	}},
	{"pod moved on", func(a *arrival) {
		second := make(chan result, 1)
		go func() {
			second <- run(a.t, podctlCommand(bounded(a.t), "c", "move", "--strategy", "post-copy", a.name, "c"))
		}()
		a.fast()
		if r := <-second; r.code != 0 {
			a.t.Fatalf("moving the pod on: %+v", r)
		}
		checkMemory(a.t, a.conn)
		now := a.inspect()
		if now.Host != "c" {
			a.t.Errorf("the pod is %+v", now)
		}
		requireClean(a.t, a.name, now)
	}},
	{"pod moved on in vain", func(a *arrival) {
		heal := part(a.t, "a", "b")
		a.awaitStalled()
		r := run(a.t, podctlCommand(bounded(a.t), "c", "move", a.name, "c"))
		if r.code != codeError || !strings.Contains(r.stderr, "memory") {
			a.t.Errorf("moving the pod on: %+v", r)
		}
		heal()
		a.requireWhole()
	}},
}

// TestMemoryArrives has something happen while memory follows a pod: everything with
// -faults, else a few things.
func TestMemoryArrives(t *testing.T) {
	names := make([]string, 0, len(memoryFaults))
	for _, f := range memoryFaults {
		names = append(names, f.name)
	}
	chosen := sample(names, 2)
	for _, f := range memoryFaults {
		if slices.Contains(chosen, f.name) {
			t.Run(f.name, func(t *testing.T) { f.run(newArrival(t)) })
		}
	}
}
