//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"podd/lab"
	"podd/pod"
	"podd/trust"
	"podd/vnet/vnettest"
)

// A daemon that can't work says so and ends, without having touched anything.
func TestBadDaemons(t *testing.T) {
	p := newBystander(t)
	dir := t.TempDir()
	state, run := filepath.Join(dir, "state"), filepath.Join(dir, "run")
	own := []string{"--state-dir", state, "--run-dir", run, "--cgroup-parent", "podd-e2e-bad"}
	const stranger = "stranger" // has no credentials
	file := func(name, content string) string { return workFile(t, name, content, 0o644) }
	address := theLab.Address("a").String()
	// A podd that has everything, and would be a second host a.
	complete := append([]string{"--name", "d", "--address", address}, own...)
	proxy := append([]string{"--name", "d", "--address", theLab.Address(lab.Proxy).String()}, own[:4]...)
	for name, test := range map[string]struct {
		node  string
		argv  []string
		words []string
	}{
		// The credentials are those of whom --name says.
		"no member": {"a", []string{"podd", "--name", stranger, "--address", address, "--state-dir", state, "--run-dir", run},
			[]string{"belongs to no cluster", "podctl cluster init", "--join", "join-token"}},
		"proxy no member": {lab.Proxy, []string{"podproxy", "--name", stranger, "--address", theLab.Address(lab.Proxy).String(), "--state-dir", state, "--run-dir", run},
			[]string{"belongs to no cluster", "podctl cluster init", "--join", "join-token"}},
		"another's credentials": {"a", append(append([]string{"podd"}, complete...), "--state-dir", theLab.StateDir("b")), []string{"host b", "host d"}},
		"in clear": {"a", append(append([]string{"podd"}, complete...), "--listen", address+":7999", "--directory", "http://10.10.0.2:2379"),
			[]string{"http://10.10.0.2:2379", "https://"}},
		"port in use": {"a", append([]string{"podd"}, complete...), []string{"port 7443 is in use", "--listen"}},
		"same directories": {"a", append(append([]string{"podd"}, complete...), "--run-dir", theLab.RunDir("a")),
			[]string{"another podd", theLab.RunDir("a"), "--run-dir"}},
		"no address": {"a", append([]string{"podd", "--name", "d"}, own...), []string{"--address"}},
		"address elsewhere": {"a", append([]string{"podd", "--name", "d", "--address", "10.10.9.9"}, own...),
			[]string{"10.10.9.9"}},
		"no directory": {"a", append([]string{"podd", "--name", "d", "--address", address, "--listen", address + ":7999", "--directory", "https://10.10.0.2:9"}, own...),
			[]string{"directory", "10.10.0.2:9"}},
		"host name taken": {"b", append([]string{"podd", "--name", "a", "--address", theLab.Address("b").String(), "--listen", theLab.Address("b").String() + ":7999"}, own...),
			[]string{"host a", "already exists", address}},
		"second here": {"a", append([]string{"podd", "--name", "a", "--address", address, "--listen", address + ":7999"}, own...),
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
			if err := os.RemoveAll(trust.Dir(state)); err != nil {
				t.Fatal(err)
			}
			identity := trust.Identity{Kind: trust.KindHost}
			if test.argv[0] == "podproxy" {
				identity.Kind = trust.KindProxy
			}
			if at := slices.Index(test.argv, "--name"); at > 0 && test.argv[at+1] != stranger {
				identity.Name = test.argv[at+1]
				admit(t, state, identity)
			}
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
		"http://127.0.0.1:9":        {"127.0.0.1:9", "TLS only", "https://"},
		"https://127.0.0.1:9":       {"127.0.0.1:9", "no certificate", "podctl context add"},
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
	// By hand, as an admin makes a cluster.
	proxyState := filepath.Join(dir, "proxy")
	r := run(t, podctlCommand(bounded(t), "a", "cluster", "init", "--name", "proxy", "--address", site.Proxy.Address.String(), "--state-dir", proxyState))
	requireResult(t, r, 0, []string{"podproxy --address " + site.Proxy.Address.String(), "join-token"}, "cluster init")
	daemon(site.Proxy, "podproxy is ready", "podproxy", "--name", "proxy", "--address", site.Proxy.Address.String(), "--directory", "embedded",
		"--public-prefix", "198.19.0.0/30", "--virtual-prefix", "100.127.0.0/30", "--state-dir", proxyState, "--run-dir", filepath.Join(dir, "p"))
	parent := fmt.Sprintf("podd-e2e-%d", os.Getpid())
	r = run(t, podctlCommand(bounded(t), "a", "--socket", filepath.Join(dir, "p", "podproxy.sock"), "cluster", "join-token", "--name", "only"))
	if r.code != 0 {
		t.Fatalf("making a token: exit code %d\n%s", r.code, r.stderr)
	}
	token := workFile(t, "token", r.stdout, 0o600)
	t.Cleanup(func() { unmountBelow(t, dir) })
	daemon(host, "podd is ready", "podd", "--name", "only", "--address", host.Address.String(), "--join", "@"+token,
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
