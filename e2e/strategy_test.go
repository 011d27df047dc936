//go:build e2e

package e2e

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"podd/pod"
)

//go:embed testdata/memory.py
var memoryServer string

// newMemory makes a pod with testdata/memory.py that has so many MiB and writes to
// so many pages a second.
func newMemory(t *testing.T, suffix string, mebibytes, rate int) *testPod {
	t.Helper()
	return newPod(t, suffix, "--", "/usr/bin/python3", "-c", memoryServer, strconv.Itoa(mebibytes), "7000", strconv.Itoa(rate))
}

// checkMemory has the server look at all its memory.
func checkMemory(t *testing.T, conn *lineConn) {
	t.Helper()
	if reply := conn.ask("check"); !strings.Contains(reply, " whole ") {
		t.Fatalf("the server's memory is not what it was: %s", reply)
	} else {
		t.Log(reply)
	}
}

// TestStrategies moves a server there and back by each strategy: its connections
// live, every page is as it was written, and nothing stays behind.
func TestStrategies(t *testing.T) {
	for _, strategy := range []pod.Strategy{pod.StrategyStopCopy, pod.StrategyPreCopy, pod.StrategyPostCopy, pod.StrategyAuto} {
		for _, rate := range []int{0, 2000} {
			t.Run(fmt.Sprintf("%s-%d", strategy, rate), func(t *testing.T) {
				server := newMemory(t, "", 64, rate)
				address := server.awaitPort(7000)
				conn := dialLines(t, address)
				checkMemory(t, conn)
				busy := keepAsking(t, address, countedBy("memory"))
				for _, target := range []string{"b", "a"} {
					m := server.moveBy(strategy, target)
					if strategy != pod.StrategyAuto && m.Chosen != strategy {
						t.Errorf("it moved by %s", m.Chosen)
					}
					checkMemory(t, conn)
				}
				busy.stop()
			})
		}
	}
}

// moveBy is move by a strategy; it returns all that is known of the move.
func (p *testPod) moveBy(strategy pod.Strategy, target string) moveView {
	p.t.Helper()
	before := p.inspect()
	traces := findTraces(p.t, before.Host, p.name, before.Epoch)
	var m moveView
	parseJSON(p.t, mustPodctl(p.t, "move", "-o", "json", "--strategy", string(strategy), p.name, target), &m)
	if m.Receipt == nil || m.State != pod.MoveDone || m.MemoryPending {
		p.t.Fatalf("moving pod %s to %s by %s: the move is %+v", p.name, target, strategy, m)
	}
	if after := p.inspect(); after.Host != target || after.Phase != pod.PhaseRunning {
		p.t.Errorf("after moving pod %s to %s it is %+v", p.name, target, after)
	}
	traces.requireGone(p.t)
	r := m.Receipt
	p.t.Logf("pod %s moved from %s to %s by %s (%s): frozen %.0f ms of %.0f ms, predicted %.0f ms; CRIU %d KiB, before %d KiB, frozen %d KiB, after %d KiB",
		p.name, before.Host, target, m.Chosen, m.Reason, r.FreezeMs, r.TotalMs, r.PredictedMs, r.MemoryBytes>>10, r.PrecopyBytes>>10, r.FrozenMemoryBytes>>10, r.LateMemoryBytes>>10)
	return m
}
