package podd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	poddv1 "podd/api/podd/v1"
	"podd/checkpoint"
	"podd/doctor"
	"podd/pod"
)

// TestJudgements: made-up facts about podd, and the worst finding they must lead
// to. What is not well must say what to do.
func TestJudgements(t *testing.T) {
	errNo := errors.New("no")
	now := time.Date(2026, 1, 10, 0, 0, 0, 0, time.UTC)
	hold := func(lasted time.Duration) heldNow {
		return heldNow{{Move: "m1", Pod: "alice", Duration: durationpb.New(lasted), Limit: durationpb.New(30 * time.Second)}}
	}
	move := func(state pod.MoveState, age time.Duration) moveFacts {
		return moveFacts{now: now, moves: []pod.Move{{ID: "m1", Pod: "alice", Source: "a", Target: "b", State: state, Stage: pod.StagePresync, StartedAt: now.Add(-age)}}}
	}
	drifted := func(recent ...drift) driftFacts {
		return driftFacts{now: now, report: driftReport{last: now, recent: recent, repaired: map[driftKind]uint64{driftNetwork: 3}}}
	}
	found := func(age time.Duration, err error) drift {
		return drift{at: now.Add(-age), kind: driftNetwork, pod: "alice", epoch: 3, what: "a network namespace", err: err}
	}
	for _, c := range []struct {
		facts    doctor.Facts
		severity doctor.Severity
		check    string
		detail   string
		remedy   string
	}{
		{criuFacts{path: "criu", kernel: "6.18", version: 40201}, doctor.OK, "criu", "4.2.1 suits kernel 6.18", ""},
		{criuFacts{path: "criu", err: fmt.Errorf("%w: version 4.1.0", checkpoint.ErrTooOld)}, doctor.Error, "criu", "too old: version 4.1.0", "apt-get install criu"},
		{criuFacts{path: "/opt/criu", err: checkpoint.ErrNoCRIU}, doctor.Error, "criu", "can be moved from or to", "ls -l /opt/criu"},
		{criuFacts{version: 40201, started: errNo}, doctor.Error, "criu", "not when podd started (no)", "systemctl restart podd"},
		{criuFacts{path: "criu", version: 40201, complaint: "no sk_ns"}, doctor.Error, "criu", "no sk_ns", "criu check"},
		{criuFacts{path: "criu", version: 40201, stopCopy: checkpoint.ErrNoFilter}, doctor.Warning, "criu", "while it is frozen", "podd-pagefilter.so"},
		{criuVersions{own: 40201, others: map[string]int{"b": 40200}}, doctor.Warning, "criu", "host b has CRIU 4.2.0, this one 4.2.1", "on the older: b"},
		{criuVersions{own: 40200, others: map[string]int{"b": 40201}}, doctor.Warning, "criu", "", "on the older: this one"},

		{mountFacts{inMemory: true}, doctor.OK, "mounts", "", ""},
		{mountFacts{inMemory: true, own: true}, doctor.Error, "mounts", "will not find its pods", "PrivateTmp=no"},
		{mountFacts{inMemory: true, own: true, ownErr: errNo}, doctor.OK, "mounts", "", ""},
		{mountFacts{imagesDir: "/run/x"}, doctor.Warning, "mounts", "not kept in memory but in /run/x", "systemctl restart podd"},
		{mountFacts{err: errNo}, doctor.Error, "mounts", "no", "systemctl restart podd"},

		{initFacts{path: "/x/podinit", mode: 0o755}, doctor.OK, "podinit", "/x/podinit", ""},
		{initFacts{path: "/x/podinit", mode: 0o644}, doctor.Error, "podinit", "is no program", "install -m 755 podinit /x/podinit"},
		{initFacts{path: "/x/podinit", err: errNo}, doctor.Error, "podinit", "no pod can be started: no", "--init-path"},

		{moveFacts{}, doctor.OK, "moves", "0 under way", ""},
		{move(pod.MoveRunning, time.Minute), doctor.OK, "moves", "1 under way", ""},
		{move(pod.MoveRunning, time.Hour), doctor.Warning, "moves", "under way for 1h0m0s and is at stage presync", "podctl move --cancel m1"},
		{move(pod.MoveCommitted, time.Hour), doctor.Warning, "moves", "a has not cleaned up", "podctl doctor a"},

		{hold(0)[:0], doctor.OK, "holds", "0 pods", ""},
		{hold(time.Second), doctor.OK, "holds", "1 pods", ""},
		{hold(20 * time.Second), doctor.Warning, "holds", "pod alice have been queued for 20s; they are let go after 30s", "podctl move --cancel m1"},
		{noProxy{errNoProxy}, doctor.Error, "proxy", "no proxy has joined", "podproxy --address"},

		{driftFacts{now: now, report: driftReport{last: now}, arrivals: map[string]pod.Arrival{"alice": {Missing: 5 << 20, Stalled: "host a does not answer"}}},
			doctor.Error, "drift", "pod alice stands still: 5 MiB of its memory are missing since it moved here: host a does not answer", "podctl rm --force alice"},
		{driftFacts{now: now, report: driftReport{last: now}, arrivals: map[string]pod.Arrival{"alice": {Missing: 5 << 20}}}, doctor.OK, "drift", "", ""},
		{drifted(), doctor.OK, "drift", "3 differences were put right", ""},
		{drifted(found(time.Minute, nil)), doctor.Warning, "drift", "1 of kind network differed from the directory in the last 10 minutes and was put right, the last 1m0s ago: pod alice, epoch 3: a network namespace", "journalctl -u podd"},
		{drifted(found(time.Hour, nil)), doctor.OK, "drift", "", ""},
		{drifted(found(time.Second, errNo)), doctor.Error, "drift", "can't be put right: pod alice, epoch 3: a network namespace: no", "fuser"},
		{drifted(found(5*time.Second, errNo), found(time.Second, nil)), doctor.Warning, "drift", "was put right", ""},
		{drifted(found(time.Hour, errNo)), doctor.OK, "drift", "", ""},
		{driftFacts{now: now}, doctor.Warning, "drift", "has not compared", "systemctl restart podd"},
		{driftFacts{now: now, report: driftReport{last: now.Add(-time.Hour)}}, doctor.Warning, "drift", "has not compared", ""},
		{driftFacts{now: now, report: driftReport{last: now, err: errNo}}, doctor.Error, "drift", "could not be compared with the directory: no", "journalctl"},
	} {
		rank := map[doctor.Severity]int{doctor.OK: 0, doctor.Warning: 1, doctor.Error: 2}
		worst := doctor.Finding{Severity: doctor.OK}
		for i, f := range c.facts.Judge() {
			if i == 0 || rank[f.Severity] > rank[worst.Severity] {
				worst = f
			}
			if (f.Severity == doctor.OK) != (f.Remedy == "") {
				t.Errorf("%+v: the remedy of %+v", c.facts, f)
			}
		}
		if worst.Severity != c.severity || worst.Check != c.check || !strings.Contains(worst.Detail, c.detail) || !strings.Contains(worst.Remedy, c.remedy) {
			t.Errorf("%+v:\n got %+v\nwant %s of %s about %q, to be mended by %q", c.facts, worst, c.severity, c.check, c.detail, c.remedy)
		}
	}
	if f := (criuVersions{own: 40201, others: map[string]int{"b": 40201, "c": 0}}).Judge(); len(f) != 0 {
		t.Errorf("the same version everywhere: %+v", f)
	}
}

// TestLookAtCRIU finds programs that are no CRIU, and none at all.
func TestLookAtCRIU(t *testing.T) {
	fake := filepath.Join(t.TempDir(), "criu")
	if err := os.WriteFile(fake, []byte("#!/bin/sh\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fake, fake + "-moved-away"} {
		d := &Daemon{settings: settings{Config: Config{CRIUPath: path}}}
		f := d.lookAtCRIU(t.Context()).Judge()[0]
		if f.Severity != doctor.Error || !strings.HasPrefix(f.Remedy, "ls -l "+path) {
			t.Errorf("%s: found %+v", path, f)
		}
	}
}

func TestFirstError(t *testing.T) {
	out := "Warn  (criu/cr-check.c:824): Dirty tracking is OFF.\nError (criu/cr-check.c:900): no sk_ns\nError second\n"
	if got := firstError(out); got != "(criu/cr-check.c:900): no sk_ns" {
		t.Errorf("got %q", got)
	}
	if got := firstError("all is well"); got != "" {
		t.Errorf("got %q", got)
	}
}

// TestMovesUnderWay picks those of a host that are not over.
func TestMovesUnderWay(t *testing.T) {
	moves := map[string]*pod.Move{
		"1": {ID: "1", Source: "a", Target: "b", State: pod.MoveRunning}, "2": {ID: "2", Source: "b", Target: "a", State: pod.MoveCommitted},
		"3": {ID: "3", Source: "a", Target: "b", State: pod.MoveDone}, "4": {ID: "4", Source: "b", Target: "c", State: pod.MoveRunning},
	}
	if f := movesUnderWay("a", moves); len(f.moves) != 2 {
		t.Errorf("got %+v", f.moves)
	}
}

// TestMarkHeldAsksNobody when no pod moves: it would take a while, and this
// daemon could not.
func TestMarkHeldAsksNobody(t *testing.T) {
	p := &poddv1.Pod{Phase: string(pod.PhaseRunning)}
	(&Daemon{}).markHeld(t.Context(), p)
	if p.Held {
		t.Error("it is held")
	}
}
