//go:build e2e

package e2e

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"podd/lab"
	"podd/pod"
	"podd/vnet/vnettest"
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

// requireTidy fails the test if any host has something of an incarnation that
// the directory doesn't know to be there.
func requireTidy(t *testing.T) {
	t.Helper()
	if left := leftovers(t); len(left) > 0 {
		t.Errorf("left over:\n%s", strings.Join(left, "\n"))
	}
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

// A daemon that can't work says so and ends, without having touched anything.
func TestBadDaemons(t *testing.T) {
	p := newBystander(t)
	dir := t.TempDir()
	state, run := filepath.Join(dir, "state"), filepath.Join(dir, "run")
	own := []string{"--state-dir", state, "--run-dir", run, "--cgroup-parent", "podd-e2e-bad"}
	file := func(name, content string) string { return workFile(t, name, content, 0o644) }
	address := theLab.Address("a").String()
	directory := "http://" + netip.AddrPortFrom(theLab.Address(lab.Proxy), 2379).String()
	// A podd that has everything, and would be a second host a.
	complete := append([]string{"--name", "d", "--address", address, "--directory", directory}, own...)
	proxy := append([]string{"--address", theLab.Address(lab.Proxy).String()}, own[:4]...)
	for name, test := range map[string]struct {
		node  string
		argv  []string
		words []string
	}{
		"port in use": {"a", append([]string{"podd"}, complete...), []string{"port 7443 is in use", "--listen"}},
		"same directories": {"a", append(append([]string{"podd"}, complete...), "--run-dir", theLab.RunDir("a")),
			[]string{"another podd", theLab.RunDir("a"), "--run-dir"}},
		"no address": {"a", append([]string{"podd", "--name", "d"}, own...), []string{"--address"}},
		"address elsewhere": {"a", append([]string{"podd", "--name", "d", "--address", "10.10.9.9", "--directory", directory}, own...),
			[]string{"10.10.9.9"}},
		"no directory": {"a", append([]string{"podd", "--name", "d", "--address", address, "--listen", address + ":7999", "--directory", "http://10.10.0.2:9"}, own...),
			[]string{"directory", "10.10.0.2:9"}},
		"host name taken": {"b", append([]string{"podd", "--name", "a", "--address", theLab.Address("b").String(), "--listen", theLab.Address("b").String() + ":7999", "--directory", directory}, own...),
			[]string{"host a", "already exists", address}},
		"second here": {"a", append([]string{"podd", "--name", "a", "--address", address, "--listen", address + ":7999", "--directory", directory}, own...),
			[]string{"live host a", address + ":7443", "--name"}},
		"no config":       {"a", []string{"podd", "--config", filepath.Join(dir, "none.toml")}, []string{"none.toml", "no such file"}},
		"unknown key":     {"a", []string{"podd", "--config", file("podd.toml", "adress = \"10.10.1.2\"\n")}, []string{"podd.toml", "unknown key", "adress"}},
		"syntax":          {"a", []string{"podd", "--config", file("podd.toml", "name = \n")}, []string{"podd.toml", "1"}},
		"wrong type":      {"a", []string{"podd", "--config", file("podd.toml", "name = [1]\n")}, []string{"podd.toml", "name"}},
		"unknown flag":    {"a", []string{"podd", "--adress", "10.10.1.2"}, []string{"adress"}},
		"stray argument":  {"a", append(append([]string{"podd"}, complete...), "start"), []string{"unexpected argument", "start"}},
		"log level":       {"a", append(append([]string{"podd"}, complete...), "--log-level", "chatty"), []string{"chatty", "debug, info, warn or error"}},
		"no init":         {"a", append(append([]string{"podd"}, complete...), "--init-path", "/nowhere/podinit"), []string{"/nowhere/podinit", "--init-path"}},
		"proxy port":      {lab.Proxy, append([]string{"podproxy"}, proxy...), []string{"in use"}},
		"proxy key":       {lab.Proxy, []string{"podproxy", "--config", file("podproxy.toml", "zones = \"x\"\n")}, []string{"podproxy.toml", "zones"}},
		"proxy prefixes":  {lab.Proxy, append([]string{"podproxy", "--public-prefix", "198.18.0.0/15", "--virtual-prefix", "100.64.0.0/16"}, proxy...), []string{"198.18.0.0/15"}},
		"proxy no prefix": {lab.Proxy, append([]string{"podproxy", "--public-prefix", "everything"}, proxy...), []string{"everything"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Cleanup(func() { unmountBelow(t, dir) })
			argv := append([]string{filepath.Join(binDir, test.argv[0])}, test.argv[1:]...)
			requireResult(t, runDaemon(t, test.node, argv), codeDaemon, append([]string{test.argv[0] + ": "}, test.words...), strings.Join(test.argv, " "))
			unmountBelow(t, dir)
			p.requireUndisturbed(t)
		})
	}
}

// runDaemon runs a daemon that is to end by itself in a node.
func runDaemon(t *testing.T, node string, argv []string) result {
	t.Helper()
	return run(t, theLab.CommandContext(bounded(t), node, argv...))
}

// unmountBelow undoes what a daemon mounts for the time it has been used.
func unmountBelow(t *testing.T, dir string) {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range slices.Backward(mounts) {
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting %s: %v", m.Mountpoint, err)
		}
	}
}

// An ordinary user is told to become root, by the daemons and by podctl.
func TestNotRoot(t *testing.T) {
	const nobody = 65534
	p := newBystander(t)
	// Where nobody can get at it.
	dir, err := os.MkdirTemp("/tmp", "podd-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	asNobody := func(program string, args ...string) result {
		t.Helper()
		path := filepath.Join(dir, program)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			data, err := os.ReadFile(filepath.Join(binDir, program))
			if err == nil {
				err = os.WriteFile(path, data, 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.CommandContext(bounded(t), path, args...)
		cmd.Dir = "/"
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "PODCTL_HOST=unix://" + theLab.Socket("a")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
		return run(t, cmd)
	}
	init := filepath.Join(dir, "podinit")
	if err := os.WriteFile(init, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	requireResult(t, asNobody("podd", "--name", "d", "--address", "10.10.1.2", "--init-path", init, "--state-dir", filepath.Join(dir, "s"), "--run-dir", filepath.Join(dir, "r")),
		codeDaemon, []string{"must run as root"}, "podd")
	requireResult(t, asNobody("podproxy", "--address", "10.10.0.2", "--state-dir", filepath.Join(dir, "s"), "--run-dir", filepath.Join(dir, "r")),
		codeDaemon, []string{"root"}, "podproxy")
	requireResult(t, asNobody("podctl", "ps"), codeError, []string{"permission denied", "run podctl as root"}, "podctl ps")
	requireResult(t, asNobody("podctl", "lab", "down"), codeError, []string{"root"}, "podctl lab down")
	p.requireUndisturbed(t)
}

// podctl that reaches nobody says where it has asked.
func TestNoDaemon(t *testing.T) {
	for address, words := range map[string][]string{
		"unix:///nowhere/podd.sock": {"/nowhere/podd.sock", "is podd running?"},
		"http://127.0.0.1:9":        {"127.0.0.1:9", "is podd running?"},
		"gopher://127.0.0.1":        {"gopher"},
	} {
		cmd := podctlCommand(bounded(t), "a", "ps")
		cmd.Env = append(cmd.Env, "PODCTL_HOST="+address)
		requireResult(t, run(t, cmd), codeError, words, "podctl at "+address)
	}
}

// A site of its own, with the fewest addresses there can be: one. When they
// are all given, nothing more is; when one is freed, it can be had again, with
// another label.
func TestAddressesExhausted(t *testing.T) {
	site := vnettest.New(t, 1)
	dir := t.TempDir()
	if len(filepath.Join(dir, "podd.sock")) > 100 { // 107 is what unix(7) allows
		t.Fatalf("%s is too long for a socket", dir)
	}
	daemon := func(node vnettest.Node, ready string, argv ...string) {
		t.Helper()
		cmd := exec.Command("nsenter", append([]string{"--net=" + node.Path, "--", filepath.Join(binDir, argv[0])}, argv[1:]...)...)
		log, err := os.Create(filepath.Join(dir, argv[0]+".log"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { log.Close() })
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		t.Cleanup(func() {
			if err := cmd.Process.Signal(unix.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Error(err)
			}
			if err := <-ended; err != nil {
				data, _ := os.ReadFile(log.Name())
				t.Errorf("%s: %v\n%s", argv[0], err, data)
			}
		})
		until(t, argv[0]+" is ready", func() error {
			data, err := os.ReadFile(log.Name())
			if err == nil && !strings.Contains(string(data), ready) {
				err = fmt.Errorf("it says\n%s", data)
			}
			return err
		})
	}
	host := site.Hosts[0]
	daemon(site.Proxy, "podproxy is ready", "podproxy", "--name", "proxy", "--address", site.Proxy.Address.String(), "--directory", "embedded",
		"--public-prefix", "198.19.0.0/30", "--virtual-prefix", "100.127.0.0/30", "--state-dir", filepath.Join(dir, "proxy"), "--run-dir", filepath.Join(dir, "p"))
	parent := fmt.Sprintf("podd-e2e-%d", os.Getpid())
	t.Cleanup(func() { unmountBelow(t, dir) })
	daemon(host, "podd is ready", "podd", "--name", "only", "--address", host.Address.String(), "--directory", "http://"+site.Proxy.Address.String()+":2379",
		"--cgroup-parent", parent, "--state-dir", filepath.Join(dir, "host"), "--run-dir", filepath.Join(dir, "h"))
	t.Cleanup(func() { removeCgroups(t, parent) })
	ask := func(args ...string) result {
		t.Helper()
		cmd := podctlCommand(bounded(t), "a", args...)
		cmd.Env = append(cmd.Env, "PODCTL_HOST=unix://"+filepath.Join(dir, "h", "podd.sock"))
		return run(t, cmd)
	}
	must := func(args ...string) string {
		t.Helper()
		r := ask(args...)
		if r.code != 0 {
			t.Fatalf("podctl %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
		}
		return r.stdout
	}
	inspect := func(name string) (v podView) {
		t.Helper()
		parseJSON(t, must("inspect", "-o", "json", name), &v)
		return v
	}
	t.Cleanup(func() { ask("rm", "-f", "first", "third") })

	must("run", "-d", "--name", "first", "--", "sleep", "inf")
	first := inspect("first")
	requireResult(t, ask("run", "-d", "--name", "second", "--", "sleep", "inf"), codeError,
		[]string{"exhausted", "every address of 100.127.0.0/30 has a pod"}, "a pod without an address")
	if got := strings.Fields(must("ps", "-a", "-o", "name")); !slices.Equal(got, []string{"first"}) {
		t.Errorf("the pods are %v", got)
	}
	if now := inspect("first"); now.Phase != pod.PhaseRunning || now.Epoch != first.Epoch {
		t.Errorf("the pod is now %+v; it was %+v", now, first)
	}
	must("rm", "-f", "first")
	must("run", "-d", "--name", "third", "--", "sleep", "inf")
	if third := inspect("third"); third.VirtualAddress != first.VirtualAddress || third.Label == first.Label {
		t.Errorf("the next pod is %+v, the one before it was %+v; want the same address and another label", third, first)
	}
	must("rm", "-f", "third")
}

// removeCgroups removes a parent of pods' cgroups, which must be empty.
func removeCgroups(t *testing.T, parent string) {
	t.Helper()
	for _, pattern := range []string{"/sys/fs/cgroup/" + parent, "/sys/fs/cgroup/*/" + parent} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range found {
			until(t, "the cgroup is gone", func() error { return unix.Rmdir(path) })
		}
	}
}
