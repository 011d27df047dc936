//go:build e2e

package e2e

import (
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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

// changingDir has testdata/changing.c as a program, built when it is first wanted.
var changingDir = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(binDir, "changing")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	out, err := exec.Command("cc", "-static", "-O2", "-Wall", "-Wextra", "-pthread", "-o", filepath.Join(dir, "changing"), "testdata/changing.c").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("building testdata/changing.c: %w\n%s", err, out)
	}
	return dir, nil
})

// newChanging makes a pod whose processes change their memory in every way: so many
// processes, threads in each, MiB and operations a second of each thread. Its port
// is 7000.
func newChanging(t *testing.T, suffix string, processes, threads, mebibytes, rate int) *testPod {
	t.Helper()
	dir, err := changingDir()
	if err != nil {
		t.Fatal(err)
	}
	args := []string{"-v", dir + ":/opt/changing:share,ro", "--", "/opt/changing/changing", "7000"}
	for _, n := range []int{processes, threads, mebibytes, rate} {
		args = append(args, strconv.Itoa(n))
	}
	return newPod(t, suffix, args...)
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

// TestStrategies moves servers there and back by each strategy: their connections
// live, every page is as it was written, and nothing stays behind. One has a large
// array that it writes to, the other does with its memory what the kernel lets it.
func TestStrategies(t *testing.T) {
	for _, strategy := range []pod.Strategy{pod.StrategyStopCopy, pod.StrategyPreCopy, pod.StrategyPostCopy, pod.StrategyAuto} {
		servers := map[string]func(t *testing.T) *testPod{
			"memory-0":    func(t *testing.T) *testPod { return newMemory(t, "", 64, 0) },
			"memory-2000": func(t *testing.T) *testPod { return newMemory(t, "", 64, 2000) },
			"changing":    func(t *testing.T) *testPod { return newChanging(t, "", 3, 2, 6, 300) },
		}
		if strategy == pod.StrategyAuto {
			delete(servers, "changing") // it moves by one of the others
		}
		for name, newServer := range servers {
			t.Run(fmt.Sprintf("%s-%s", strategy, name), func(t *testing.T) {
				server := newServer(t)
				address := server.awaitPort(7000)
				conn := dialLines(t, address)
				checkMemory(t, conn)
				program, _, _ := strings.Cut(name, "-")
				busy := keepAsking(t, address, countedBy(program))
				targets := []string{"b", "a"}
				if program == "changing" && strategy != pod.StrategyStopCopy {
					targets = append(targets, "b", "c", "a")
				}
				for _, target := range targets {
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
