//go:build e2e

package e2e

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"podd/e2e/workload"
	"podd/lab"
	"podd/pod"
)

var allFaults = flag.Bool("faults", false, "inject every fault of the table, not only some of each kind")

// outcome is where the pod runs in the end.
type outcome string

const (
	stays   outcome = "on the source"
	goes    outcome = "on the target"
	settled outcome = "where the directory says" // on one of them: two things race
)

// faultCase is one cell of the table in ARCHITECTURE.md: what happens when this
// goes wrong at that stage, in a move from a to b.
type faultCase struct {
	// point and action are what package fault is told; the actions after that
	// are the test's own, carried out while the daemon is stopped at the point:
	//
	//	pause   it goes on after pauseTime
	//	hang    it goes on only when the other side has given up
	//	cut     the hosts lose each other
	//	isolate the daemon's host loses everybody
	//	term    it is told to end, and is started again
	point, action string
	outcome       outcome
	// usual is part of the smaller selection.
	usual bool
}

// pauseTime is how long a paused daemon stands still: less than the lease by
// which the others know that it is alive.
const pauseTime = 5 * time.Second

// faultTable is the table of recovery. Before the commit every failure leaves
// the pod where it was; after it the pod is the target's, come what may.
var faultTable = []faultCase{
	{"source:preflight", "error", stays, false},
	{"source:preflight", "kill", stays, true},
	{"source:preflight", "pause", goes, false},
	{"source:reserve", "error", stays, false},
	{"source:reserve", "kill", stays, true},
	{"source:reserve", "pause", goes, false},
	{"source:reserve", "sever", stays, false},
	{"source:presync", "error", stays, false},
	{"source:presync", "kill", stays, true},
	{"source:presync", "pause", goes, false},
	{"source:presync", "sever", stays, true},
	{"source:presync", "full", stays, false},
	{"source:presync", "hang", stays, false},
	{"source:presync", "cut", stays, false},
	{"source:hold", "error", stays, false},
	{"source:hold", "kill", stays, true},
	{"source:hold", "pause", goes, false},
	{"source:hold", "sever", stays, false},
	{"source:freeze", "error", stays, true},
	{"source:freeze", "kill", stays, true},
	{"source:freeze", "pause", goes, false},
	{"source:freeze", "sever", stays, false},
	{"source:dump", "error", stays, false},
	{"source:dump", "kill", stays, true},
	{"source:dump", "pause", goes, false},
	{"source:dump", "sever", stays, false},
	{"source:dump", "full", stays, false},
	{"source:dump", "hang", stays, false},
	{"source:dump", "cut", stays, false},
	{"source:dump", "term", stays, true},
	{"source:transfer", "error", stays, false},
	{"source:transfer", "kill", stays, true},
	{"source:transfer", "pause", goes, false},
	{"source:transfer", "sever", stays, false},
	{"source:restore", "error", stays, false},
	{"source:restore", "kill", stays, true},
	{"source:restore", "pause", goes, false},
	{"source:restore", "sever", stays, false},
	{"source:restore-asked", "error", settled, false},
	{"source:restore-asked", "kill", settled, true},
	{"source:restore-asked", "pause", goes, false},
	{"source:restore-asked", "sever", settled, true},
	{"source:restore-asked", "hang", goes, false},
	{"source:restore-asked", "isolate", goes, false},
	{"source:commit", "error", settled, false},
	{"source:commit", "kill", settled, true},
	{"source:commit", "pause", goes, false},
	{"source:commit", "sever", settled, true},
	{"source:committed", "error", goes, false},
	{"source:committed", "kill", goes, true},
	{"source:committed", "pause", goes, false},
	{"source:committed", "sever", goes, false},
	{"source:release", "kill", goes, true},
	{"source:release", "pause", goes, false},

	{"target:preflight", "error", stays, false},
	{"target:preflight", "kill", stays, true},
	{"target:preflight", "pause", goes, false},
	{"target:reserve", "error", stays, false},
	{"target:reserve", "kill", stays, true},
	{"target:reserve", "pause", goes, false},
	{"target:reserve", "sever", stays, false},
	{"target:reserve", "full", stays, false},
	{"target:reserve", "hang", stays, false},
	{"target:presync", "error", stays, false},
	{"target:presync", "kill", stays, true},
	{"target:presync", "pause", goes, false},
	{"target:presync", "sever", stays, false},
	{"target:presync", "full", stays, true},
	{"target:dump", "error", stays, false},
	{"target:dump", "kill", stays, true},
	{"target:dump", "pause", goes, false},
	{"target:dump", "sever", stays, false},
	{"target:dump", "full", stays, true},
	{"target:dump", "hang", stays, false},
	{"target:transfer", "error", stays, true},
	{"target:transfer", "kill", stays, true},
	{"target:transfer", "pause", goes, false},
	{"target:transfer", "sever", stays, false},
	{"target:transfer", "full", stays, false},
	{"target:restore", "error", stays, true},
	{"target:restore", "kill", stays, true},
	{"target:restore", "pause", goes, false},
	{"target:restore", "sever", settled, false},
	{"target:restore", "full", stays, false},
	{"target:restore", "cut", settled, false},
	{"target:commit", "error", stays, false},
	{"target:commit", "kill", stays, true},
	{"target:commit", "pause", goes, true},
	{"target:commit", "sever", settled, false},
	{"target:commit", "hang", stays, true},
	{"target:commit", "cut", settled, false},
	{"target:commit", "isolate", stays, false},
	{"target:commit", "term", settled, false},
	{"target:committed", "error", goes, false},
	{"target:committed", "kill", goes, true},
	{"target:committed", "pause", goes, false},
	{"target:committed", "sever", goes, true},
	{"target:committed", "hang", goes, false},
	{"target:committed", "term", goes, true},
	{"target:release", "kill", goes, true},
	{"target:release", "pause", goes, false},
	{"target:release", "sever", goes, false},

	// podproxy has the directory, so with it goes the only one who can decide.
	{"proxy:hold", "kill", settled, true},
	{"proxy:hold", "pause", settled, true},
	{"proxy:release", "kill", goes, true},
	{"proxy:release", "pause", goes, false},
}

func TestFaults(t *testing.T) {
	for _, c := range faultTable {
		if !c.usual && !*allFaults {
			continue
		}
		t.Run(c.point+" "+c.action, func(t *testing.T) { c.run(t) })
	}
}

// node is where the fault is.
func (c faultCase) node() string {
	switch side, _, _ := strings.Cut(c.point, ":"); side {
	case "source":
		return "a"
	case "target":
		return "b"
	}
	return lab.Proxy
}

func (c faultCase) run(t *testing.T) {
	p := newLoadgen(t, "", "serve-tcp", "-listen", ":7000", "-rate", "262144")
	old := workload.NewTCP(workload.TCPConfig{Address: p.awaitPort(7000), Dial: fromClient, Rate: 256 << 10, Seed: 1})
	connection := startLoad(t, old)
	before := p.inspect()
	action := c.action
	switch action {
	case "pause", "hang", "cut", "isolate", "term":
		action = "stop"
	}
	file := filepath.Join(theLab.RunDir(c.node()), "faults")
	if err := os.WriteFile(file, []byte(c.point+" "+action+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(file); err != nil {
			t.Error(err)
		}
	})
	moved := make(chan result, 1)
	go func() { moved <- run(t, podctlCommand(bounded(t), "a", "move", p.name, "b")) }()
	until(t, "the fault has been injected", func() error {
		data, err := os.ReadFile(file)
		if err == nil && len(data) > 0 {
			err = errors.New("it is still to come")
		}
		return err
	})
	said := c.meanwhile(t, p, moved)
	t.Logf("the move ended with %d: %s", said.code, strings.TrimSpace(said.stderr))

	after := awaitSettled(t, p)
	switch {
	case c.outcome == stays && after.Host != "a", c.outcome == goes && after.Host != "b":
		t.Errorf("the pod is on host %s; want it %s", after.Host, c.outcome)
	}
	c.checkSaid(t, said, after.Host)
	requireFlow(t, old)
	second := startLoad(t, workload.NewTCP(workload.TCPConfig{Address: p.public(7000), Dial: fromClient, Rate: 256 << 10, Seed: 2}))
	second.finish()
	requireClean(t, p.name, before.Epoch, after)

	if after.Host == "a" {
		p.move("b")
	} else {
		p.move("a")
	}
	requireFlow(t, old)
	connection.finish()
	t.Logf("%+v", old.Result())
}

// meanwhile lets the fault run its course: daemons that end are started again,
// as systemd would, and what the test has done to them is undone. It returns
// how the command ended.
func (c faultCase) meanwhile(t *testing.T, p *testPod, moved <-chan result) result {
	t.Helper()
	node := c.node()
	ended := func() result {
		t.Helper()
		select {
		case r := <-moved:
			return r
		case <-time.After(commandTimeout):
			t.Fatal("the command does not end")
		}
		panic("unreachable")
	}
	resume := func() {
		t.Helper()
		if err := theLab.Kill(node, unix.SIGCONT); err != nil {
			t.Error(err)
		}
	}
	switch c.action {
	case "kill":
		restart(t, node)
		return ended()
	case "pause":
		awaitStopped(t, node)
		<-time.After(pauseTime)
		resume()
		return ended()
	case "term":
		awaitStopped(t, node)
		if err := theLab.Kill(node, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		resume()
		restart(t, node)
		return ended()
	case "hang":
		awaitStopped(t, node)
		t.Cleanup(func() { theLab.Kill(node, unix.SIGCONT) }) // if the test fails before
		if node == "a" {
			c.awaitOther(t, p)
			resume()
			return ended()
		}
		r := ended()
		resume()
		return r
	case "cut":
		awaitStopped(t, node)
		heal := dropPackets(t, theLab.Address("a").String(), theLab.Address("b").String())
		resume()
		r := ended()
		heal()
		return r
	case "isolate":
		awaitStopped(t, node)
		heal := dropPackets(t, theLab.Address(node).String(), "0.0.0.0/0")
		resume()
		if node == "a" {
			c.awaitOther(t, p)
			heal()
			return ended()
		}
		r := ended()
		heal()
		return r
	}
	return ended()
}

// awaitOther waits until the target has done what it has to do without the
// source: committed, or gone back to where it was.
func (c faultCase) awaitOther(t *testing.T, p *testPod) {
	t.Helper()
	until(t, "the target has decided alone", func() error {
		if c.outcome == goes {
			var v podView
			parseJSON(t, run(t, podctlCommand(bounded(t), "c", "inspect", "-o", "json", p.name)).stdout, &v)
			if v.Host != "b" {
				return fmt.Errorf("the pod is on host %s", v.Host)
			}
			return nil
		}
		return remains("b", p.name, 0)
	})
}

// restart starts a daemon that ends.
func restart(t *testing.T, node string) {
	t.Helper()
	ctx := bounded(t)
	if err := errors.Join(theLab.Wait(ctx, node), theLab.Start(ctx, node)); err != nil {
		t.Fatal(err)
	}
}

// awaitStopped waits until a daemon stands still.
func awaitStopped(t *testing.T, node string) {
	t.Helper()
	pid, err := theLab.PID(node)
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the daemon of "+node+" is stopped", func() error {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err == nil && !strings.Contains(string(stat), ") T ") {
			err = fmt.Errorf("it is not: %s", stat)
		}
		return err
	})
}

// dropPackets makes the router drop what two addresses send each other.
func dropPackets(t *testing.T, a, b string) (heal func()) {
	t.Helper()
	healed := false
	rules := func(what string) {
		for _, pair := range [][2]string{{a, b}, {b, a}} {
			inNode(t, lab.Router, "iptables", "-w", what, "FORWARD", "-s", pair[0], "-d", pair[1], "-j", "DROP")
		}
	}
	rules("-I")
	heal = func() {
		if !healed {
			healed = true
			rules("-D")
		}
	}
	t.Cleanup(heal)
	return heal
}

// awaitSettled waits until no move of the pod is under way.
func awaitSettled(t *testing.T, p *testPod) podView {
	t.Helper()
	var v podView
	until(t, "the move is decided", func() error {
		if v = p.inspect(); v.Phase != pod.PhaseRunning {
			return fmt.Errorf("the pod is %s", v.Phase)
		}
		return nil
	})
	return v
}

// checkSaid checks what the command said, whose end depends on the source's podd.
func (c faultCase) checkSaid(t *testing.T, said result, host string) {
	t.Helper()
	side, stage, _ := strings.Cut(c.point, ":")
	if side == "source" && (c.action == "kill" || c.action == "term") {
		return
	}
	if host == "b" {
		if said.code != 0 {
			t.Errorf("the pod has moved, but the command ended with %d", said.code)
		}
		return
	}
	if said.code == 0 {
		t.Error("the pod has not moved, but the command ended with 0")
	}
	want := []string{"stage " + strings.TrimSuffix(stage, "-asked") + " failed", "goes on running on a"}
	if stage == "preflight" {
		want = []string{"preflight: "} // nothing was begun
	}
	if c.action != "error" && c.action != "full" {
		want = want[1:] // it may be noticed a stage later
	} else {
		want = append(want, "a fault was injected at "+c.point)
	}
	for _, w := range want {
		if !strings.Contains(said.stderr, w) {
			t.Errorf("the command does not say %q", w)
		}
	}
}

// requireFlow fails the test if nothing new comes through a connection.
func requireFlow(t *testing.T, c *workload.TCP) {
	t.Helper()
	before := c.Result().Received
	until(t, "the connection goes on", func() error {
		if n := c.Result().Received - before; n < 64<<10 {
			return fmt.Errorf("%d bytes came", n)
		}
		return nil
	})
}

// requireClean fails the test if a host keeps anything of the pod, except the
// incarnation that runs.
func requireClean(t *testing.T, name string, first pod.Epoch, now podView) {
	t.Helper()
	for _, host := range []string{"a", "b"} {
		var keep pod.Epoch
		if host == now.Host {
			keep = now.Epoch
		}
		until(t, "host "+host+" is clean", func() error { return remains(host, name, keep) })
	}
}

// remains is an error if a host has anything of a pod, except one incarnation,
// or any image of a move.
func remains(host, name string, keep pod.Epoch) error {
	run, state, parent := theLab.RunDir(host), theLab.StateDir(host), theLab.CgroupParent(host)
	var found []string
	for _, place := range []struct{ pattern, keep string }{
		{filepath.Join(state, "pods", name+".*"), fmt.Sprintf("%s.%d", name, keep)},
		{filepath.Join(run, "containers", name+".*"), fmt.Sprintf("%s.%d", name, keep)},
		{filepath.Join("/sys/fs/cgroup", parent, name+".*"), fmt.Sprintf("%s.%d", name, keep)},
		{filepath.Join("/sys/fs/cgroup/*", parent, name+".*"), fmt.Sprintf("%s.%d", name, keep)},
		{filepath.Join(run, "netns", name+"-*"), fmt.Sprintf("%s-%d", name, keep)},
		{filepath.Join(run, "checkpoint", "*"), ""},
	} {
		paths, err := filepath.Glob(place.pattern)
		if err != nil {
			return err
		}
		for _, path := range paths {
			if filepath.Base(path) != place.keep {
				found = append(found, path)
			}
		}
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return err
	}
	for _, m := range mounts {
		own := strings.HasPrefix(m.Mountpoint, run+"/") || strings.HasPrefix(m.Mountpoint, state+"/")
		kept := strings.Contains(m.Mountpoint+"/", fmt.Sprintf("/%s.%d/", name, keep)) || strings.HasSuffix(m.Mountpoint, fmt.Sprintf("/%s-%d", name, keep))
		if own && !kept && (strings.Contains(m.Mountpoint, "/"+name+".") || strings.Contains(m.Mountpoint, "/"+name+"-")) {
			found = append(found, "mount "+m.Mountpoint)
		}
	}
	if len(found) > 0 {
		return fmt.Errorf("host %s still has %s", host, strings.Join(found, ", "))
	}
	return nil
}
