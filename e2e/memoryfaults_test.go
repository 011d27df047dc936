//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"podd/fault/recovery"
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

// The pager is killed before the pod runs, or when it runs: another one goes on.
func TestPagerKilled(t *testing.T) {
	for _, point := range []string{"target:committed", "target:memory"} {
		t.Run(point, func(t *testing.T) {
			s := newPostCopy(t)
			s.begin(point, "stop")
			killPagers(t, "b")
			resume(t, "b")
			s.requireOutcome(recovery.Goes)
		})
	}
}

// killPagers kills every pager of a host; what keeps their descriptors is another
// process.
func killPagers(t *testing.T, node string) {
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
		var meta struct {
			Pager struct {
				PID int `json:"pid"`
			} `json:"pager"`
		}
		parseJSON(t, string(data), &meta)
		signalProcess(t, meta.Pager.PID, unix.SIGKILL)
	}
}
