//go:build e2e

package e2e

import (
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"podd/pod"
	"podd/sharedmem"
)

//go:embed testdata/sharing.py
var sharingServer string

// sharedMebibytes is how much anonymous memory the processes of newSharing share; half of
// it are holes.
const sharedMebibytes = 128

func newSharing(t *testing.T) *testPod {
	t.Helper()
	return newPod(t, "", "--", "/usr/bin/python3", "-c", sharingServer, fmt.Sprint(sharedMebibytes), "7000")
}

// TestSharedMemory moves processes that share memory in every way, and write to it, by
// each strategy: every page, hole, size and seal is as it was made, and CRIU has carried
// none of it.
func TestSharedMemory(t *testing.T) {
	for _, strategy := range []pod.Strategy{pod.StrategyStopCopy, pod.StrategyPreCopy, pod.StrategyPostCopy, pod.StrategyAuto} {
		t.Run(string(strategy), func(t *testing.T) {
			server := newSharing(t)
			address := server.awaitPort(7000)
			conn := dialLines(t, address)
			checkMemory(t, conn)
			busy := keepAsking(t, address, countedBy("sharing"))
			for _, target := range []string{"b", "c", "a"} {
				m := server.moveBy(strategy, target)
				checkMemory(t, conn)
				requireNoKeeper(t)
				const least = sharedMebibytes / 2 << 20
				if r := m.Receipt; r.PrecopyBytes < least || r.MemoryBytes > least && strategy != pod.StrategyStopCopy {
					t.Errorf("%d KiB were sent before the freeze, and %d KiB by CRIU", r.PrecopyBytes>>10, r.MemoryBytes>>10)
				}
			}
			busy.stop()
		})
	}
}

// TestSharedMemoryFaults has moves fail, and what has them in hand die, in every state
// that shared memory can be in: it is whole where the pod is then, and kept nowhere else.
func TestSharedMemoryFaults(t *testing.T) {
	for _, c := range []struct {
		point, action string
		goes          bool
	}{
		{"target:dump", "error", false},
		{"source:dump", "error", false},
		{"source:transfer", "error", false},
		{"source:transfer", "kill", false},
		{"target:restore", "error", false},
		{"target:transfer", "kill", false},
		{"target:adopt", "error", false},
		{"target:committed", "kill", true},
		{"target:resuming", "kill", true},
		{"target:resumed", "kill", true},
	} {
		t.Run(strings.ReplaceAll(c.point, ":", "-")+"-"+c.action, func(t *testing.T) {
			awaitHosts(t)
			server := newSharing(t)
			conn := dialLines(t, server.awaitPort(7000))
			checkMemory(t, conn)
			s := &scene{t: t, pod: server, command: make(chan result, 1)}
			s.begin(c.point, c.action)
			if c.action == "kill" {
				restart(t, nodeOf(c.point))
			}
			s.await(0)
			t.Logf("the move ended with %d: %s", s.ended.code, strings.TrimSpace(s.ended.stderr))
			after := awaitSettled(t, server)
			if goes := after.Host == "b"; goes != c.goes {
				t.Errorf("the pod is on host %s", after.Host)
			}
			checkMemory(t, conn)
			requireClean(t, server.name, after)
			requireNoKeeper(t)
			awaitHosts(t)
			server.move("c")
			checkMemory(t, conn)
		})
	}
}

// requireNoKeeper waits until no process keeps shared memory for a pod to come.
func requireNoKeeper(t *testing.T) {
	t.Helper()
	until(t, "nobody keeps shared memory", func() error {
		found, err := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, file := range found {
			line, err := os.ReadFile(file)
			if err == nil && strings.HasSuffix(string(line), "podd\x00"+sharedmem.Subcommand+"\x00") {
				return fmt.Errorf("%s does", file)
			}
		}
		return err
	})
}
