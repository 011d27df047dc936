//go:build e2e

package e2e

import (
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"podd/pod"
)

// Exit codes of podctl, as podman's, and of the daemons.
const (
	codeNotMovable  = 1 // the verdict of move --dry-run
	codeError       = 125
	codeNotExecuted = 126
	codeNotFound    = 127
	codeDaemon      = 1
)

// requireRefused runs podctl, which has to end with the code and to say every
// one of the words.
func requireRefused(t *testing.T, code int, words []string, args ...string) {
	t.Helper()
	requireResult(t, podctl(t, args...), code, words, "podctl "+strings.Join(args, " "))
}

func requireResult(t *testing.T, r result, code int, words []string, what string) {
	t.Helper()
	said := r.stdout + r.stderr
	if r.code != code {
		t.Errorf("%s: exit code %d, want %d\n%s", what, r.code, code, said)
	}
	for _, word := range words {
		if !strings.Contains(said, word) {
			t.Errorf("%s does not say %q, but\n%s", what, word, said)
		}
	}
	for _, noise := range []string{"panic:", "goroutine ", "%!", "rpc error", "<nil>"} {
		if strings.Contains(said, noise) {
			t.Errorf("%s says %q:\n%s", what, noise, said)
		}
	}
}

// bystander is a pod with a connection that nothing a test does may disturb.
type bystander struct {
	*testPod
	before podView
	conn   *lineConn
	asked  int
}

func newBystander(t *testing.T) *bystander {
	t.Helper()
	p := newPython(t, "bystander", "bystander", 7000)
	b := &bystander{testPod: p, conn: dialLines(t, p.awaitPort(7000)), before: p.inspect()}
	b.requireUndisturbed(t)
	return b
}

// requireUndisturbed fails the test unless the pod runs where it was, as it
// was, its connection is alive, and no host has anything of a pod that isn't
// there.
func (b *bystander) requireUndisturbed(t *testing.T) {
	t.Helper()
	b.asked++
	if got, want := b.conn.ask("hello"), fmt.Sprintf("bystander %d hello", b.asked); got != want {
		t.Errorf("reply %q; want %q", got, want)
	}
	now := b.inspect()
	if now.Phase != pod.PhaseRunning || now.Host != b.before.Host || now.Epoch != b.before.Epoch || now.Label != b.before.Label {
		t.Errorf("pod %s is now %+v; it was %+v", b.name, now, b.before)
	}
	requireTidy(t)
}

// requireTidy fails the test if any host keeps something of an incarnation that
// the directory doesn't know to be there. A pod that has just moved runs, and is
// said to, before its host has put the images away.
func requireTidy(t *testing.T) {
	t.Helper()
	until(t, "every host is tidy", func() error {
		if left := leftovers(t); len(left) > 0 {
			return fmt.Errorf("left over:\n%s", strings.Join(left, "\n"))
		}
		return nil
	})
}

func leftovers(t *testing.T) []string {
	t.Helper()
	var pods []podView
	parseJSON(t, mustPodctl(t, "ps", "-a", "-o", "json"), &pods)
	var left []string
	for _, host := range theLab.HostNames() {
		known := map[string]bool{}
		for _, p := range pods {
			if p.Host == host {
				known[fmt.Sprintf("%s.%d", p.Name, p.Epoch)], known[fmt.Sprintf("%s-%d", p.Name, p.Epoch)] = true, true
			}
		}
		patterns := []string{
			filepath.Join(theLab.StateDir(host), "pods/*"),
			filepath.Join(theLab.RunDir(host), "containers/*"),
			filepath.Join(theLab.RunDir(host), "libcontainer/*"),
			filepath.Join(theLab.RunDir(host), "netns/*"),
			filepath.Join(theLab.RunDir(host), "checkpoint/*"),
			filepath.Join(theLab.StateDir(host), "import-*"),
			filepath.Join(theLab.StateDir(host), "spool/*"),
		}
		for _, form := range []string{"/sys/fs/cgroup/%s/*/", "/sys/fs/cgroup/*/%s/*/"} {
			patterns = append(patterns, fmt.Sprintf(form, theLab.CgroupParent(host)))
		}
		for _, pattern := range patterns {
			found, err := filepath.Glob(pattern)
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range found {
				if !known[filepath.Base(filepath.Clean(path))] {
					left = append(left, path)
				}
			}
		}
	}
	return left
}

// Moves that can't be are refused in preflight.
func TestBadMoves(t *testing.T) {
	p := newBystander(t)
	stopped := newShell(t, "stopped", "exit 3")
	if code := podctl(t, "wait", stopped.name).stdout; strings.TrimSpace(code) != "3" {
		t.Fatalf("the pod's exit code is %q", code)
	}
	until(t, "the pod has stopped", func() error {
		if phase := stopped.inspect().Phase; phase != pod.PhaseStopped {
			return fmt.Errorf("it is %s", phase)
		}
		return nil
	})
	for name, test := range map[string]struct {
		args  []string
		words []string
	}{
		"unknown pod":    {[]string{"nobody", "b"}, []string{`pod "nobody"`, "not found", "podctl ps -a"}},
		"unknown host":   {[]string{p.name, "nowhere"}, []string{"host nowhere", "not found", "podctl host ls"}},
		"same host":      {[]string{p.name, "a"}, []string{p.name, "is on host a already"}},
		"stopped pod":    {[]string{stopped.name, "b"}, []string{stopped.name, "it is stopped", "only a running pod"}},
		"no host":        {[]string{p.name}, []string{"POD HOST", "podctl help move"}},
		"too many words": {[]string{p.name, "b", "c"}, []string{"podctl help move"}},
		"unknown flag":   {[]string{"--fast", p.name, "b"}, []string{"fast", "podctl help move"}},
		"bad format":     {[]string{"-o", "xml", p.name, "b"}, []string{"xml", "json"}},
	} {
		t.Run(name, func(t *testing.T) {
			requireRefused(t, codeError, test.words, append([]string{"move"}, test.args...)...)
			if len(test.args) == 2 {
				requireRefused(t, codeError, test.words, append([]string{"move", "--dry-run"}, test.args...)...)
			}
			p.requireUndisturbed(t)
		})
	}
}

// Pods that can't be made leave nothing.
func TestBadRuns(t *testing.T) {
	p := newBystander(t)
	pods := mustPodctl(t, "ps", "-a", "-o", "name")
	plain := workFile(t, "plain", "no program\n", 0o644)
	for name, test := range map[string]struct {
		code  int
		args  []string
		words []string
	}{
		"name invalid":      {codeError, []string{"--name", "Bad_Name", "--", "true"}, []string{"Bad_Name", "lower-case letters, digits and hyphens"}},
		"name too long":     {codeError, []string{"--name", strings.Repeat("x", 64), "--", "true"}, []string{"64 characters", "at most 63"}},
		"name taken":        {codeError, []string{"--name", p.name, "--", "true"}, []string{p.name, "already exists"}},
		"taken elsewhere":   {codeError, []string{"--host", "b", "--name", p.name, "--", "true"}, []string{p.name, "already exists"}},
		"unknown host":      {codeError, []string{"--host", "nowhere", "--", "true"}, []string{"host nowhere", "not found", "podctl host ls"}},
		"unknown image":     {codeError, []string{"--image", "nothing", "--", "true"}, []string{"nothing", "not found", "podctl image ls"}},
		"missing directory": {codeError, []string{"--image", "dir:/nowhere", "--", "true"}, []string{"/nowhere"}},
		"no command":        {codeError, nil, []string{"no command"}},
		"command not found": {codeNotFound, []string{"--", "no-such-program"}, []string{"no-such-program: No such file"}},
		"not executable":    {codeNotExecuted, []string{"-v", plain + ":/mnt/plain", "--", "/mnt/plain"}, []string{"/mnt/plain", "ermission denied"}},
		"volume":            {codeError, []string{"-v", "/etc", "--", "true"}, []string{"/etc", "SOURCE:DESTINATION"}},
		"volume policy":     {codeError, []string{"-v", "/etc:/mnt:teleport", "--", "true"}, []string{"teleport", "move, share, copy"}},
		"volume missing":    {codeError, []string{"-v", "/nowhere/at/all:/mnt", "--", "true"}, []string{"/nowhere/at/all"}},
		"memory":            {codeError, []string{"--memory", "lots", "--", "true"}, []string{"lots", "512m"}},
		"too little memory": {codeError, []string{"--memory", "1k", "--", "true"}, []string{"memory limit", "6m"}},
		"processors":        {codeError, []string{"--cpus", "-1", "--", "true"}, []string{"-1"}},
		"unknown user":      {codeError, []string{"--user", "nobody-knows", "--", "true"}, []string{"nobody-knows"}},
		"work directory":    {codeError, []string{"--workdir", "tmp", "--", "true"}, []string{"absolute path"}},
	} {
		t.Run(name, func(t *testing.T) {
			requireRefused(t, test.code, test.words, append([]string{"run", "--rm"}, test.args...)...)
			until(t, "nothing is left of it", func() error {
				if now := mustPodctl(t, "ps", "-a", "-o", "name"); now != pods {
					return fmt.Errorf("the pods are\n%sbefore\n%s", now, pods)
				}
				return nil
			})
			p.requireUndisturbed(t)
		})
	}
}

// A host that is down takes no pod and gives none away; when it is back, its
// pods are as they were.
func TestHostDown(t *testing.T) {
	p := newBystander(t)
	stranded := newPythonOn(t, "c", "stranded", "stranded", 7000)
	conn := dialLines(t, stranded.awaitPort(7000))
	conn.ask("before")
	killDaemon(t, "c")
	until(t, "host c is known to be down", func() error {
		if h := inspectHost(t, "c"); h.Alive {
			return errors.New("it counts as alive")
		}
		return nil
	})
	requireRefused(t, codeError, []string{"host c is down", "podctl host ls"}, "move", p.name, "c")
	requireRefused(t, codeError, []string{"host c is down", "podctl host ls"}, "move", "--dry-run", p.name, "c")
	requireRefused(t, codeError, []string{"unavailable", "host c", "podctl host ls"}, "run", "-d", "--host", "c", "--", "true")
	requireRefused(t, codeError, []string{"unavailable", "host c", theLab.API("c").String()}, "move", stranded.name, "b")
	// The pod there needs no daemon.
	if got := conn.ask("meanwhile"); got != "stranded 2 meanwhile" {
		t.Errorf("reply %q", got)
	}
	p.requireUndisturbed(t)
	startDaemon(t, "c")
	if got := conn.ask("after"); got != "stranded 3 after" {
		t.Errorf("reply %q", got)
	}
	stranded.move("b")
	if got := conn.ask("moved"); got != "stranded 4 moved" {
		t.Errorf("reply %q", got)
	}
	p.requireUndisturbed(t)
}

// newPythonOn is newPython on any host.
func newPythonOn(t *testing.T, host, suffix, name string, port int) *testPod {
	t.Helper()
	return newPodOn(t, host, suffix, "--", "/usr/bin/python3", "-c", pythonServer, name, fmt.Sprint(port))
}

// killDaemon kills a node's daemon as a crash would; the test's end starts it
// again.
func killDaemon(t *testing.T, node string) {
	t.Helper()
	t.Cleanup(func() { startDaemon(t, node) })
	if err := theLab.Kill(node, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := theLab.Wait(bounded(t), node); err != nil {
		t.Fatal(err)
	}
}

// startDaemon starts a node's daemon unless it runs, and waits until it counts
// as alive.
func startDaemon(t *testing.T, node string, flags ...string) {
	t.Helper()
	if pid, err := theLab.PID(node); err != nil {
		t.Fatal(err)
	} else if pid == 0 {
		if err := theLab.Start(bounded(t), node, flags...); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "host "+node+" is alive", func() error {
		if h := inspectHost(t, node); !h.Alive {
			return errors.New("it counts as down")
		}
		return nil
	})
}

// restartDaemon restarts a host's daemon with more flags; the test's end
// restarts it without.
func restartDaemon(t *testing.T, node string, flags ...string) {
	t.Helper()
	stop := func() {
		t.Helper()
		if err := theLab.Stop(bounded(t), node); err != nil && !errors.Is(err, pod.ErrNotFound) {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { stop(); startDaemon(t, node) })
	stop()
	startDaemon(t, node, flags...)
}

// hostView is what the tests need of podctl host ls -o json.
type hostView struct {
	Name  string `json:"name"`
	Alive bool   `json:"alive"`
	CRIU  string `json:"criu"`
}

func inspectHost(t *testing.T, name string) hostView {
	t.Helper()
	var hosts []hostView
	parseJSON(t, mustPodctl(t, "host", "ls", "-o", "json"), &hosts)
	i := slices.IndexFunc(hosts, func(h hostView) bool { return h.Name == name })
	if i < 0 {
		t.Fatalf("host %s is not in %+v", name, hosts)
	}
	return hosts[i]
}

// A host without a usable CRIU runs pods, and says why it can't move them.
func TestNoCRIU(t *testing.T) {
	p := newBystander(t)
	local := newPythonOn(t, "b", "local", "local", 7000)
	conn := dialLines(t, local.awaitPort(7000))
	for name, test := range map[string]struct {
		path  string
		words []string
	}{
		"none":         {"/nowhere/criu", []string{"CRIU not found", "/nowhere/criu", "install CRIU 4.2"}},
		"too old":      {oldCRIU(t), []string{"CRIU too old", "3.17.1", "install a newer criu"}},
		"not a CRIU":   {"/bin/false", []string{"CRIU not found", "/bin/false does not answer"}},
		"not runnable": {workFile(t, "criu", "", 0o644), []string{"CRIU not found", "permission denied"}},
	} {
		t.Run(name, func(t *testing.T) {
			restartDaemon(t, "b", "--criu-path", test.path)
			if h := inspectHost(t, "b"); h.CRIU != "" {
				t.Errorf("host b says it has CRIU %s", h.CRIU)
			}
			words := append([]string{"host b"}, test.words...)
			requireRefused(t, codeError, append(words, p.name+" goes on running on a"), "move", p.name, "b")
			requireRefused(t, codeNotMovable, words, "move", "--dry-run", p.name, "b")
			requireRefused(t, codeError, words, "move", local.name, "a")
			conn.ask("still there")
			mustPodctl(t, "run", "--rm", "--host", "b", "--", "true")
			p.requireUndisturbed(t)
		})
	}
}

// oldCRIU writes a program that answers as CRIU 3.17.1 does, Debian 12's, when
// it is asked for its version.
func oldCRIU(t *testing.T) string {
	t.Helper()
	answer, err := proto.Marshal(&rpc.CriuResp{
		Type: rpc.CriuReqType_VERSION.Enum(), Success: proto.Bool(true),
		Version: &rpc.CriuVersion{MajorNumber: proto.Int32(3), MinorNumber: proto.Int32(17), Sublevel: proto.Int32(1)},
	})
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`#!/usr/bin/python3
import socket, sys
assert sys.argv[-2] == "swrk"
peer = socket.socket(fileno=int(sys.argv[-1]))
peer.recv(65536)
peer.send(bytes.fromhex(%q))
`, hex.EncodeToString(answer))
	return workFile(t, "criu", script, 0o755)
}
