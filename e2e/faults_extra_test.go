//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podd/fault/recovery"
	"podd/pod"
)

// extraFault is a fault beyond those of the table: what only the daemons
// themselves can be made to do, and long silences. The directory is podproxy's.
type extraFault struct {
	// point and action are what package fault is told; the actions after that
	// are the test's own, carried out while the daemon is stopped at the point:
	//
	//	pause   it goes on after stopTime
	//	hang    it goes on only when the other side has given up
	//	cut     the hosts lose each other
	//	term    it is told to end, and is started again
	point, action string
	outcome       recovery.Outcome
}

// extraFaults follow the same rule as the table: before the commit every failure
// leaves the pod where it was; after it the pod is the target's, come what may.
var extraFaults = []extraFault{
	{"source:preflight", "error", recovery.Stays},
	{"source:reserve", "error", recovery.Stays},
	{"source:reserve", "sever", recovery.Stays},
	{"source:presync", "error", recovery.Stays},
	{"source:presync", "sever", recovery.Stays},
	{"source:presync", "full", recovery.Stays},
	{"source:presync", "hang", recovery.Stays},
	{"source:presync", "cut", recovery.Stays},
	{"source:hold", "error", recovery.Stays},
	{"source:hold", "sever", recovery.Stays},
	{"source:freeze", "error", recovery.Stays},
	{"source:freeze", "sever", recovery.Stays},
	{"source:dump", "error", recovery.Stays},
	{"source:dump", "sever", recovery.Stays},
	{"source:dump", "full", recovery.Stays},
	{"source:dump", "hang", recovery.Stays},
	{"source:dump", "cut", recovery.Stays},
	{"source:dump", "term", recovery.Stays},
	{"source:transfer", "error", recovery.Stays},
	{"source:transfer", "sever", recovery.Stays},
	{"source:restore", "error", recovery.Stays},
	{"source:restore", "sever", recovery.Stays},
	{"source:restore-asked", "error", recovery.Either},
	{"source:restore-asked", "sever", recovery.Either},
	{"source:restore-asked", "hang", recovery.Goes},
	{"source:commit", "error", recovery.Either},
	{"source:commit", "sever", recovery.Either},
	{"source:committed", "error", recovery.Goes},
	{"source:committed", "sever", recovery.Goes},

	{"target:preflight", "error", recovery.Stays},
	{"target:reserve", "error", recovery.Stays},
	{"target:reserve", "sever", recovery.Stays},
	{"target:reserve", "full", recovery.Stays},
	{"target:reserve", "hang", recovery.Stays},
	{"target:presync", "error", recovery.Stays},
	{"target:presync", "sever", recovery.Stays},
	{"target:presync", "full", recovery.Stays},
	{"target:dump", "error", recovery.Stays},
	{"target:dump", "kill", recovery.Stays},
	{"target:dump", "pause", recovery.Goes},
	{"target:dump", "sever", recovery.Stays},
	{"target:dump", "full", recovery.Stays},
	{"target:dump", "hang", recovery.Stays},
	{"target:transfer", "error", recovery.Stays},
	{"target:transfer", "sever", recovery.Stays},
	{"target:transfer", "full", recovery.Stays},
	{"target:restore", "error", recovery.Stays},
	{"target:restore", "sever", recovery.Either},
	{"target:restore", "full", recovery.Stays},
	{"target:restore", "cut", recovery.Either},
	{"target:commit", "error", recovery.Stays},
	{"target:commit", "sever", recovery.Either},
	{"target:commit", "hang", recovery.Stays},
	{"target:commit", "cut", recovery.Either},
	{"target:commit", "term", recovery.Either},
	{"target:committed", "error", recovery.Goes},
	{"target:committed", "sever", recovery.Goes},
	{"target:committed", "hang", recovery.Goes},
	{"target:committed", "term", recovery.Goes},
	{"target:release", "sever", recovery.Goes},

	// podproxy has the directory, so with it goes the only one who can decide.
	{"proxy:hold", "kill", recovery.Either},
	{"proxy:hold", "pause", recovery.Either},
	{"proxy:release", "kill", recovery.Goes},
	{"proxy:release", "pause", recovery.Goes},
}

// by is the outcome if the move carries memory by a strategy. By post-copy the restore
// may need what has not come yet from a source that hangs, until its lease is missing.
// By checkpoint-server the hosts don't need their link.
func (c extraFault) by(strategy pod.Strategy) recovery.Outcome {
	switch {
	case strategy == pod.StrategyPostCopy && c.point == "source:restore-asked" && c.action == "hang":
		return recovery.Either
	case strategy == pod.StrategyCheckpointServer && c.action == "cut":
		return recovery.Goes
	}
	return c.outcome
}

func TestExtraFaults(t *testing.T) {
	for _, c := range sample(slices.Clone(extraFaults), 3) {
		c.outcome = c.by(pod.Strategy(*strategyFlag))
		t.Run(c.point+" "+c.action, func(t *testing.T) { c.run(t) })
	}
}

func (c extraFault) run(t *testing.T) {
	s := newScene(t)
	action := c.action
	switch action {
	case "pause", "hang", "cut", "term":
		action = "stop"
	}
	s.begin(c.point, action)
	c.meanwhile(s)
	c.checkSaid(t, *s.ended, s.requireOutcome(c.outcome).Host)
}

// meanwhile lets the fault run its course: daemons that end are started again,
// as systemd would, and what the test has done to them is undone. It returns
// when the command has ended.
func (c extraFault) meanwhile(s *scene) {
	t, node := s.t, nodeOf(c.point)
	t.Helper()
	// A pod that stays goes on by itself. The move of one that has gone by post-copy
	// does not end before its memory can come.
	limit := cutTime
	if c.outcome == recovery.Stays {
		limit = 0
	}
	switch c.action {
	case "kill":
		restart(t, node)
	case "pause":
		pass(stopTime)
		resume(t, node)
	case "term":
		if err := theLab.Kill(node, unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		resume(t, node)
		restart(t, node)
	case "hang":
		if node == "a" {
			c.awaitOther(s)
		} else {
			s.await(limit)
		}
		resume(t, node)
	case "cut":
		heal := part(t, "a", "b")
		resume(t, node)
		s.await(limit)
		heal()
	}
	s.await(0)
}

// awaitOther waits until the target has done what it has to do without the
// source: committed, or gone back to where it was.
func (c extraFault) awaitOther(s *scene) {
	t := s.t
	t.Helper()
	committed := func() error {
		var v podView
		parseJSON(t, run(t, podctlCommand(bounded(t), "c", "inspect", "-o", "json", s.pod.name)).stdout, &v)
		if v.Host != "b" {
			return fmt.Errorf("the pod is on host %s", v.Host)
		}
		return nil
	}
	undone := func() error { return remains("b", s.pod.name, 0) }
	until(t, "the target has decided alone", func() error {
		switch c.outcome {
		case recovery.Goes:
			return committed()
		case recovery.Stays:
			return undone()
		}
		if committed() == nil {
			return nil
		}
		return undone()
	})
}

// checkSaid checks what the command said, whose end depends on the source's podd.
func (c extraFault) checkSaid(t *testing.T, said result, host string) {
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

// part makes two nodes lose each other.
func part(t *testing.T, a, b string) (heal func()) {
	t.Helper()
	if err := theLab.Partition(a, b); err != nil {
		t.Fatal(err)
	}
	return healer(t, func() error { return theLab.Heal(a, b) })
}

// isolate makes a node lose every other.
func isolate(t *testing.T, node string) (heal func()) {
	t.Helper()
	if err := theLab.Isolate(node); err != nil {
		t.Fatal(errors.Join(err, theLab.Rejoin(node)))
	}
	return healer(t, func() error { return theLab.Rejoin(node) })
}

// healer calls undo once, at the test's end at the latest.
func healer(t *testing.T, undo func() error) (heal func()) {
	healed := false
	heal = func() {
		t.Helper()
		if !healed {
			healed = true
			if err := undo(); err != nil {
				t.Error(err)
			}
		}
	}
	t.Cleanup(heal)
	return heal
}
