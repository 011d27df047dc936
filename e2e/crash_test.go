//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"podd/fault/recovery"
	"podd/pod"
	"podd/procfs"
)

// These are the narrow windows that the model check found: two things that die at
// the wrong moments, one after the other. model/README.md names them.

// also adds a fault to those that are still to come on a point's node.
func (s *scene) also(point, action string) {
	s.t.Helper()
	node := nodeOf(point)
	file, err := os.OpenFile(filepath.Join(theLab.RunDir(node), "faults"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	_, err = fmt.Fprintln(file, point, action)
	if err := file.Close(); err != nil {
		s.t.Error(err)
	}
	if err != nil {
		s.t.Fatal(err)
	}
}

// criuOf is the CRIU that works for the daemon of a node.
func criuOf(t *testing.T, node string) int {
	t.Helper()
	podd, err := theLab.PID(node)
	if err != nil {
		t.Fatal(err)
	}
	table, err := procfs.Table()
	if err != nil {
		t.Fatal(err)
	}
	for pid, stat := range table {
		if stat.Program == "criu" && stat.Parent == podd {
			return pid
		}
	}
	t.Fatalf("no CRIU works for the podd of host %s", node)
	return 0
}

func signalProcess(t *testing.T, pid int, signal unix.Signal) {
	t.Helper()
	if err := unix.Kill(pid, signal); err != nil {
		t.Fatalf("sending process %d signal %v: %v", pid, signal, err)
	}
}

// initOf is the process that the record of a pod's incarnation names.
func initOf(t *testing.T, host, name string, epoch pod.Epoch) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(theLab.StateDir(host), "pods", fmt.Sprintf("%s.%d", name, epoch), "container.json"))
	if err != nil {
		t.Fatal(err)
	}
	var record struct {
		Process struct {
			PID int `json:"pid"`
		} `json:"process"`
	}
	parseJSON(t, string(data), &record)
	if record.Process.PID == 0 {
		t.Fatalf("the record of %s.%d names no process: %s", name, epoch, data)
	}
	return record.Process.PID
}

// podd on the source is killed in a dump and started again while its CRIU has yet
// to notice: the pod looks as if it ran, and will be frozen in the end.
func TestRestartDuringRollback(t *testing.T) {
	s := newScene(t)
	s.begin("source:dump", "stop")
	criu := criuOf(t, "a")
	signalProcess(t, criu, unix.SIGSTOP)
	t.Cleanup(func() { unix.Kill(criu, unix.SIGCONT) }) // if the test fails before
	kill(t, "a", unix.SIGKILL)
	restart(t, "a")
	signalProcess(t, criu, unix.SIGCONT)
	s.requireOutcome(recovery.Stays)
}

// The record by which podd finds the pod again can't be written.
func TestAdoptionFails(t *testing.T) {
	for _, action := range []string{"full", "kill"} {
		t.Run(action, func(t *testing.T) {
			s := newScene(t)
			s.begin("target:adopt", action)
			if action == "kill" {
				restart(t, "b")
			}
			s.requireOutcome(recovery.Stays)
		})
	}
}

// CRIU dies after the commit and takes the pod with it, and so does the next
// attempt: podd goes on until the pod runs, without being started again.
func TestRestoreInsists(t *testing.T) {
	s := newScene(t)
	s.begin("target:committed", "stop")
	s.also("target:recover-restore", "error")
	signalProcess(t, criuOf(t, "b"), unix.SIGKILL)
	resume(t, "b")
	s.requireOutcome(recovery.Goes)
}

// CRIU, podd and the pod die at the last moment before the pod runs: nothing but
// the images is left of it, and what its connections become in the kernel when
// their sockets are closed: one with nothing to read has an end to tell.
func TestDeathAtRelease(t *testing.T) {
	s := newScene(t)
	// Nobody is to be refused meanwhile: resets are looked out for.
	s.pod.exec("sh", "-c", `"$@" >/dev/null 2>&1 </dev/null & until grep -q 00000000:1B59 /proc/net/tcp; do sleep 0.05; done`,
		"sh", "/usr/bin/python3", "-c", pythonServer, "idle", "7001")
	idle := dialLines(t, s.pod.public(7001))
	idle.ask("before")
	s.begin("target:resuming", "stop")
	now := s.pod.inspect()
	if now.Host != "b" {
		t.Fatalf("the pod is on host %s", now.Host)
	}
	criu := criuOf(t, "b")
	// CRIU holds the processes, so none of them runs before it dies.
	signalProcess(t, initOf(t, "b", s.pod.name, now.Epoch), unix.SIGKILL)
	signalProcess(t, criu, unix.SIGKILL)
	kill(t, "b", unix.SIGKILL)
	restart(t, "b")
	s.requireOutcome(recovery.Goes)
	if got := idle.ask("after"); got != "idle 2 after" {
		t.Errorf("on the idle connection comes %q", got)
	}
}

// podd is killed when the pod runs, but can't be heard yet.
func TestDeathBeforeHeard(t *testing.T) {
	s := newScene(t)
	s.begin("target:unheard", "kill")
	restart(t, "b")
	s.requireOutcome(recovery.Goes)
}

// podd is killed when the pod runs and its images are still there, and can't take
// the pod over at once when it is back: the images go all the same.
func TestLateTakeOver(t *testing.T) {
	s := newScene(t)
	s.begin("target:resumed", "kill")
	s.also("target:recover-pod", "error")
	restart(t, "b")
	s.requireOutcome(recovery.Goes)
}

// podd is killed when the pod runs and its images are still there, and the pod
// ends by itself: it must not come back to life.
func TestEndBeforeImagesAreGone(t *testing.T) {
	for _, strategy := range []pod.Strategy{pod.StrategyStopCopy, pod.StrategyPostCopy} {
		t.Run(string(strategy), func(t *testing.T) { endBeforeImagesAreGone(t, strategy) })
	}
}

func endBeforeImagesAreGone(t *testing.T, strategy pod.Strategy) {
	t.Helper()
	p := newShell(t, "", "trap 'exit 11' TERM; echo ready; while :; do sleep 0.05; done")
	until(t, "the pod is ready", func() error {
		if out := mustPodctl(t, "logs", p.name); out != "ready\n" {
			return fmt.Errorf("it said %q", out)
		}
		return nil
	})
	s := &scene{t: t, pod: p, command: make(chan result, 1), flags: []string{"--strategy", string(strategy)}}
	s.begin("target:resumed", "stop")
	now := p.inspect()
	init := initOf(t, "b", p.name, now.Epoch)
	kill(t, "b", unix.SIGKILL)
	signalProcess(t, init, unix.SIGTERM)
	until(t, "the pod has ended", func() error {
		if stat, err := procfs.ReadStat(init); err == nil && !stat.Ended() {
			return fmt.Errorf("it has not: %+v", stat)
		}
		return nil
	})
	restart(t, "b")
	s.await(0)
	until(t, "the pod's end is recorded", func() error {
		v := p.inspect()
		if v.Phase != pod.PhaseStopped || v.ExitCode == nil || *v.ExitCode != 11 {
			return fmt.Errorf("the pod is %+v", v)
		}
		return nil
	})
	images, err := filepath.Glob(filepath.Join(theLab.RunDir("b"), "checkpoint", "*"))
	if err != nil || len(images) > 0 {
		t.Errorf("left are %v (%v)", images, err)
	}
}
