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
