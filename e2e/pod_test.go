//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"podd/lab"
	"podd/pod"
)

// testPod is a pod of one test; the test's end removes it.
type testPod struct {
	t    *testing.T
	name string
	// removed says that the test has removed it.
	removed bool
}

// podView is what the tests need of podctl inspect -o json.
type podView struct {
	Name           string     `json:"name"`
	Phase          pod.Phase  `json:"phase"`
	Host           string     `json:"host"`
	VirtualAddress netip.Addr `json:"virtualAddress"`
	PublicAddress  netip.Addr `json:"publicAddress"`
	Label          pod.Label  `json:"label"`
	Epoch          pod.Epoch  `json:"epoch"`
	ExitCode       *int       `json:"exitCode"`
	// Arrival is there while memory is to come.
	Arrival *struct {
		Missing int64  `json:"missingBytes"`
		Stalled string `json:"stalled"`
	} `json:"arrival"`
}

// moveView is what the tests need of podctl move -o json.
type moveView struct {
	ID     string        `json:"id"`
	Pod    string        `json:"pod"`
	Source string        `json:"source"`
	Target string        `json:"target"`
	State  pod.MoveState `json:"state"`
	// Chosen is how the memory was carried, and Reason why.
	Chosen        pod.Strategy `json:"chosen"`
	Reason        string       `json:"reason"`
	MemoryPending bool         `json:"memoryPending"`
	Receipt       *receipt     `json:"receipt"`
}

type receipt struct {
	FreezeMs    float64 `json:"freezeMs"`
	ExcisionMs  float64 `json:"excisionMs"`
	InsertionMs float64 `json:"insertionMs"`
	TotalMs     float64 `json:"totalMs"`
	MemoryBytes int64   `json:"memoryBytes"`
	// Of memory that podd carries itself, as in pod.Receipt.
	PrecopyBytes      int64   `json:"precopyBytes"`
	FrozenMemoryBytes int64   `json:"frozenMemoryBytes"`
	LateMemoryBytes   int64   `json:"lateMemoryBytes"`
	PredictedMs       float64 `json:"predictedMs"`
	Processes         int     `json:"processes"`
	Connections       int     `json:"connections"`
}

func (r *receipt) freeze() time.Duration {
	return time.Duration(r.FreezeMs * float64(time.Millisecond))
}

var notInNames = regexp.MustCompile(`[^a-z0-9]+`)

// newPod makes a pod on host a that is named after the test. suffix tells the
// pods of one test apart; args are podctl run's, from its other flags on.
func newPod(t *testing.T, suffix string, args ...string) *testPod {
	t.Helper()
	return newPodOn(t, "a", suffix, args...)
}

// newPodOn is newPod on any host.
func newPodOn(t *testing.T, host, suffix string, args ...string) *testPod {
	t.Helper()
	name := strings.ToLower(strings.TrimPrefix(t.Name(), "Test"))
	name = strings.Trim(notInNames.ReplaceAllString(name, "-"), "-")
	if suffix != "" {
		name += "-" + suffix
	}
	p := &testPod{t: t, name: name}
	reportLogs(t)
	t.Cleanup(p.remove)
	mustPodctl(t, append([]string{"run", "-d", "--host", host, "--name", name}, args...)...)
	return p
}

// newShell makes a pod whose main command is a shell script.
func newShell(t *testing.T, suffix, script string) *testPod {
	t.Helper()
	return newPod(t, suffix, "--", "sh", "-euc", script)
}

// remove removes the pod, after showing its output if the test has failed.
func (p *testPod) remove() {
	if p.removed {
		return
	}
	if p.t.Failed() {
		r := podctl(p.t, "logs", "--tail", "30", p.name)
		p.t.Logf("the end of pod %s's output:\n%s%s", p.name, r.stdout, r.stderr)
	}
	if r := podctl(p.t, "rm", "-f", p.name); r.code != 0 {
		p.t.Errorf("removing pod %s: exit code %d: %s", p.name, r.code, r.stderr)
	}
}

func (p *testPod) inspect() podView {
	p.t.Helper()
	var v podView
	parseJSON(p.t, mustPodctl(p.t, "inspect", "-o", "json", p.name), &v)
	return v
}

// public is the address that clients connect to, with a port.
func (p *testPod) public(port int) string {
	p.t.Helper()
	return netip.AddrPortFrom(p.inspect().PublicAddress, uint16(port)).String()
}

// awaitPort waits until the pod accepts connections from the client.
func (p *testPod) awaitPort(port int) (address string) {
	p.t.Helper()
	address = p.public(port)
	until(p.t, fmt.Sprintf("pod %s answers on port %d", p.name, port), func() error {
		conn, err := theLab.Dial(bounded(p.t), lab.Client, "tcp", address)
		if err != nil {
			return err
		}
		return conn.Close()
	})
	return address
}

// exec runs a command in the pod; it has to succeed. It returns standard
// output without white space around it.
func (p *testPod) exec(argv ...string) string {
	p.t.Helper()
	return strings.TrimSpace(mustPodctl(p.t, append([]string{"exec", p.name, "--"}, argv...)...))
}

// shell runs a shell script in the pod as exec does.
func (p *testPod) shell(script string) string {
	p.t.Helper()
	return p.exec("sh", "-euc", script)
}

// move moves the pod, checks that the source is left clean, and returns what
// was measured.
func (p *testPod) move(target string) *receipt {
	p.t.Helper()
	before := p.inspect()
	traces := findTraces(p.t, before.Host, p.name, before.Epoch)
	var m moveView
	parseJSON(p.t, mustPodctl(p.t, "move", "-o", "json", p.name, target), &m)
	if m.Receipt == nil || m.State != pod.MoveDone {
		p.t.Fatalf("moving pod %s to %s: the move is %q, its receipt %+v", p.name, target, m.State, m.Receipt)
	}
	if asked := pod.Strategy(*strategyFlag); asked != "" && asked != pod.StrategyAuto && m.Chosen != asked {
		p.t.Errorf("pod %s was to move by %s, and did by %s: %s", p.name, asked, m.Chosen, m.Reason)
	}
	after := p.inspect()
	if after.Host != target || after.Phase != pod.PhaseRunning || after.Epoch <= before.Epoch || after.Label == before.Label {
		p.t.Errorf("after moving pod %s to %s it is %+v; before it was %+v", p.name, target, after, before)
	}
	if after.VirtualAddress != before.VirtualAddress || after.PublicAddress != before.PublicAddress {
		p.t.Errorf("the move of pod %s changed an address: %+v, before %+v", p.name, after, before)
	}
	traces.requireGone(p.t)
	p.t.Logf("pod %s moved from %s to %s: frozen %.0f ms of %.0f ms, %d processes, %d connections",
		p.name, before.Host, target, m.Receipt.FreezeMs, m.Receipt.TotalMs, m.Receipt.Processes, m.Receipt.Connections)
	return m.Receipt
}

func parseJSON(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %q", err, text)
	}
}

// reported are the tests that show the daemons' logs if they fail.
var reported = map[*testing.T]bool{}

// reportLogs has what the daemons log from now on shown if the test fails.
func reportLogs(t *testing.T) {
	t.Helper()
	if reported[t] {
		return
	}
	reported[t] = true
	const lines = 60
	sizes := map[string]int64{}
	for _, node := range theLab.Daemons() {
		info, err := os.Stat(theLab.LogPath(node))
		if err != nil {
			t.Fatal(err)
		}
		sizes[node] = info.Size()
	}
	t.Cleanup(func() {
		delete(reported, t)
		if !t.Failed() {
			return
		}
		for _, node := range theLab.Daemons() {
			data, err := os.ReadFile(theLab.LogPath(node))
			if err != nil {
				t.Error(err)
				continue
			}
			log := strings.Split(strings.TrimSpace(string(data[sizes[node]:])), "\n")
			log = slices.DeleteFunc(log, func(line string) bool { return strings.Contains(line, " component=etcd") })
			t.Logf("the end of what %s logged during the test:\n%s", node, strings.Join(log[max(0, len(log)-lines):], "\n"))
		}
	})
}

// workFile writes a file for one test, outside of pods, and returns its path.
func workFile(t *testing.T, name, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}
