//go:build root

package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/daemon"
	"podd/directory"
	"podd/pod"
	"podd/trust"
	"podd/trust/trusttest"
	"podd/vnet"
	"podd/vnet/vnettest"
)

// hold asks for the hold of a move as the host that the pod is on does.
func (s *site) hold(move string, host int) error {
	client := poddv1connect.NewProxyServiceClient(s.hosts[host], fmt.Sprintf("https://%s:%d", s.Proxy.Address, DefaultPort), api.ClientOptions())
	ctx, cancel := context.WithTimeout(s.t.Context(), vnettest.Timeout)
	defer cancel()
	_, err := client.Hold(ctx, connect.NewRequest(&poddv1.HoldRequest{Move: move}))
	return err
}

// beginMove opens the journal entry of a move and holds the pod.
func (s *site) beginMove(p *testPod, target int) *pod.Move {
	s.t.Helper()
	m, err := s.dir.BeginMove(s.t.Context(), p.name, s.Hosts[target].Name, pod.StrategyAuto)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := errors.Join(s.dir.SetHeld(s.t.Context(), m.ID, true), s.hold(m.ID, p.host)); err != nil {
		s.t.Fatal(err)
	}
	return m
}

// transplant is what checkpoint and restore do, as far as the network can tell.
func (s *site) transplant(p *testPod, m *pod.Move, target int) {
	s.t.Helper()
	old := s.networks[p.host]
	if err := errors.Join(old.Block(p.path), old.Detach(p.path),
		s.networks[target].Attach(p.path, m.Next, vnet.AttachOptions{Blocked: true})); err != nil {
		s.t.Fatal(err)
	}
	p.host = target
}

// TestMove moves a pod with a live connection, in the order of a real move.
func TestMove(t *testing.T) {
	s := newSite(t, 2)
	p, other := s.run("alice", 0), s.run("bob", 0)
	vnettest.Serve(t, p.path, ":80", "alice")
	vnettest.Serve(t, other.path, ":80", "bob")
	fromClient := s.connect(s.Client.Path, p, p.public()+":80", "alice")
	fromPod := s.connect(other.path, p, p.Binding.Virtual.String()+":80", "alice")

	for round, target := range []int{1, 0} {
		m := s.beginMove(p, target)
		if !strings.Contains(s.fetch("/metrics"), "\npodproxy_pods_held 1\n") {
			t.Error("the metrics don't tell of the hold")
		}
		message := fmt.Sprintf("sent while held %d", round)
		if _, err := fromClient.Write([]byte(message)); err != nil {
			t.Fatal(err)
		}
		s.transplant(p, m, target)
		if err := s.dir.CommitMove(t.Context(), m.ID); err != nil {
			t.Fatal(err)
		}
		if err := s.networks[target].Unblock(p.path); err != nil {
			t.Fatal(err)
		}
		vnettest.ExpectGreeting(t, fromClient, message) // its echo
		for _, c := range []net.Conn{fromClient, fromPod} {
			if err := vnettest.Echo(c, "and after"); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		if err := s.dir.FinishMove(t.Context(), m.ID, nil); err != nil {
			t.Fatal(err)
		}
		if err := s.hold(m.ID, 1-target); !errors.Is(err, pod.ErrConflict) {
			t.Errorf("hold of a finished move: %v", err)
		}
	}
	for _, metric := range []string{"podproxy_switches_total 2", `podproxy_hold_seconds_count{outcome="committed"} 2`, "podproxy_pods 2"} {
		vnettest.Eventually(t, metric, func() bool { return strings.Contains(s.fetch("/metrics"), "\n"+metric+"\n") })
	}
}

// TestMoveAborted: what was queued goes to where the pod still is.
func TestMoveAborted(t *testing.T) {
	s := newSite(t, 2)
	p := s.run("alice", 0)
	vnettest.Serve(t, p.path, ":80", "alice")
	c := s.connect(s.Client.Path, p, p.public()+":80", "alice")
	m := s.beginMove(p, 1)
	if err := s.hold(m.ID, 1); !errors.Is(err, pod.ErrDenied) {
		t.Errorf("hold for another host than the one that the pod leaves: %v", err)
	}
	if _, err := c.Write([]byte("held")); err != nil {
		t.Fatal(err)
	}
	if err := s.dir.AbortMove(t.Context(), m.ID, pod.StageDump, errors.New("no")); err != nil {
		t.Fatal(err)
	}
	vnettest.ExpectGreeting(t, c, "held")
	if err := s.hold("unheard", 0); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("hold of an unknown move: %v", err)
	}
}

// TestRestart stops podproxy in both ways; connections go on without it, and
// what happened meanwhile is made up for.
func TestRestart(t *testing.T) {
	s := newSite(t, 2)
	p := s.run("alice", 0)
	vnettest.Serve(t, p.path, ":80", "alice")
	c := s.connect(s.Client.Path, p, p.public()+":80", "alice")
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		began := time.Now()
		s.stop(signal)
		t.Logf("%v: stopped in %s", signal, time.Since(began))
		if err := vnettest.Echo(c, "nobody is watching"); err != nil {
			t.Fatalf("after %v: %v", signal, err)
		}
		s.start()
		s.ready()
		t.Logf("ready again after %s", time.Since(began))
		if err := vnettest.Echo(c, "and again"); err != nil {
			t.Fatalf("restarted after %v: %v", signal, err)
		}
	}
	// Killed during a hold; the move is decided once it is back.
	m := s.beginMove(p, 1)
	s.stop(unix.SIGKILL)
	if _, err := c.Write([]byte("held")); err != nil {
		t.Fatal(err)
	}
	s.transplant(p, m, 1)
	s.start()
	s.ready()
	if err := s.dir.CommitMove(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	if err := s.networks[1].Unblock(p.path); err != nil {
		t.Fatal(err)
	}
	vnettest.ExpectGreeting(t, c, "held")
}

// TestNames asks with dig as a client and as a pod.
func TestNames(t *testing.T) {
	s := newSite(t, 1)
	serial := func() string {
		return strings.Fields(s.dig(s.Client.Path, "10.10.0.2", "+short", "pods.internal", "SOA"))[2]
	}
	before := serial()
	p := s.run("alice", 0)
	vnettest.Eventually(t, "alice has a name", func() bool {
		return s.dig(s.Client.Path, "10.10.0.2", "+short", "alice.pods.internal") == p.public()
	})
	if after := serial(); after == before {
		t.Errorf("the serial is %s before and after", after)
	}
	vnettest.Eventually(t, "the pod has a way out", func() bool {
		c, err := vnettest.TryDial(p.path, "169.254.1.1:53", 200*time.Millisecond)
		return err == nil && c.Close() == nil
	})
	for _, c := range []struct{ from, server, args, want string }{
		{p.path, "169.254.1.1", "+short alice.pods.internal", "100.64.0.2"},
		{p.path, "169.254.1.1", "+short +tcp alice.pods.internal", "100.64.0.2"},
		{p.path, "169.254.1.1", "+short -x 100.64.0.2", "alice.pods.internal."},
		{p.path, "169.254.1.1", "example.com", "SERVFAIL"},
		{s.Client.Path, "10.10.0.2", "+short -x 198.18.0.2", "alice.pods.internal."},
		{s.Client.Path, "10.10.0.2", "example.com", "REFUSED"},
		{s.Client.Path, "10.10.0.2", "bob.pods.internal", "NXDOMAIN"},
	} {
		if got := s.dig(c.from, c.server, strings.Fields(c.args)...); got != c.want && !strings.Contains(got, "status: "+c.want) {
			t.Errorf("dig %s: got %q, want %q", c.args, got, c.want)
		}
	}
	if err := s.dir.DeletePod(t.Context(), "alice"); err != nil {
		t.Fatal(err)
	}
	vnettest.Eventually(t, "the name is gone", func() bool {
		return strings.Contains(s.dig(s.Client.Path, "10.10.0.2", "alice.pods.internal"), "NXDOMAIN")
	})
}

// TestRefusals: each start that can't be says why, and changes nothing.
func TestRefusals(t *testing.T) {
	s := newSite(t, 1)
	vnettest.Listen(t, s.Client.Path, ":2379")
	beside := func(change func(*Config)) (Config, vnettest.Node) {
		c := s.config
		c.RunDir, c.StateDir = t.TempDir(), t.TempDir()
		trusttest.InitIn(t, trust.Dir(c.StateDir))
		c.Listen, c.DNSListen = "10.10.0.2:17444", "10.10.0.2:1053"
		change(&c)
		return c, s.Proxy
	}
	elsewhere := func(change func(*Config)) (Config, vnettest.Node) {
		c := s.config
		c.RunDir, c.StateDir = t.TempDir(), t.TempDir()
		trusttest.MemberIn(t, trust.Dir(c.StateDir), s.issuer, trust.Identity{Kind: trust.KindProxy, Name: "second"}, 0)
		c.Name, c.Address = "second", s.Client.Address.String()
		c.Directory = fmt.Sprintf("https://%s:%d", s.Proxy.Address, directory.DefaultPort)
		change(&c)
		return c, s.Client
	}
	refuse := func(says string) func(Config, vnettest.Node) {
		return func(config Config, node vnettest.Node) {
			t.Helper()
			var out []byte
			node.Do(t, func() (err error) {
				if out, err = s.command(config).CombinedOutput(); err == nil {
					return errors.New("podproxy ran")
				}
				return nil
			})
			if !strings.Contains(string(out), says) {
				t.Errorf("want a message about %q, got %s", says, out)
			}
		}
	}
	refuse("another podproxy runs")(s.config, s.Proxy)
	refuse("--listen")(beside(func(c *Config) { c.Listen = "" }))
	refuse("another name server")(beside(func(c *Config) { c.DNSListen = "" }))
	refuse("169.254.1.1:53")(beside(func(*Config) {}))
	refuse("serves this cluster already")(elsewhere(func(*Config) {}))
	refuse("was made for")(elsewhere(func(c *Config) { c.Zone = "other.internal" }))
	refuse("https://127.0.0.1:1")(elsewhere(func(c *Config) { c.Directory = "https://127.0.0.1:1" }))
	refuse("192.0.2.10:2379: bind: address already in use")(elsewhere(func(c *Config) {
		c.Name, c.StateDir, c.Directory = "", t.TempDir(), daemon.EmbeddedDirectory
		trusttest.InitIn(t, trust.Dir(c.StateDir))
	}))
	refuse("leave --directory out")(elsewhere(func(c *Config) { c.Directory = daemon.EmbeddedDirectory }))
	refuse("belongs to no cluster")(elsewhere(func(c *Config) { c.StateDir = t.TempDir() }))
	refuse("are those of proxy second")(elsewhere(func(c *Config) { c.Name = "third" }))
	refuse("chmod 600")(elsewhere(func(c *Config) {
		if err := os.Chmod(filepath.Join(trust.Dir(c.StateDir), "key.pem"), 0o644); err != nil {
			t.Fatal(err)
		}
	}))
	refuse("directory at https://10.10.0.2:2379")(elsewhere(func(c *Config) {
		c.StateDir, c.Name = t.TempDir(), ""
		trusttest.InitIn(t, trust.Dir(c.StateDir))
	}))
	refuse("cannot assign requested address")(elsewhere(func(c *Config) { c.Address = "203.0.113.1" }))
	s.ready()
}

// TestCleanup: nothing of podproxy is left in the kernel.
func TestCleanup(t *testing.T) {
	s := newSite(t, 1)
	before := s.run("alice", 0)
	vnettest.Serve(t, before.path, ":80", "alice")
	s.connect(s.Client.Path, before, before.public()+":80", "alice")
	cleanup := func() (string, error) {
		var out []byte
		var err error
		s.Proxy.Do(t, func() error {
			out, err = s.command(s.config, "cleanup").CombinedOutput()
			return nil
		})
		return string(out), err
	}
	if out, err := cleanup(); err == nil || !strings.Contains(out, "another podproxy runs") {
		t.Errorf("cleanup beside a running podproxy: %v: %s", err, out)
	}
	s.stop(unix.SIGTERM)
	for range 2 {
		if out, err := cleanup(); err != nil {
			t.Fatalf("cleanup: %v: %s", err, out)
		}
	}
	var left string
	s.Proxy.Do(t, func() (err error) {
		left, err = kernelState()
		return err
	})
	if strings.Contains(left, "podproxy") || strings.Contains(left, "label") || strings.Contains(left, "169.254.1.1") || strings.Contains(left, "vxlan") {
		t.Errorf("left behind:\n%s", left)
	}
}

// kernelState is what the programs of an administrator show.
func kernelState() (string, error) {
	var all strings.Builder
	for _, command := range []string{"iptables-save", "ipset list", "ip -d link", "ip addr", "ip route show table all", "ip neigh"} {
		args := strings.Fields(command)
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s: %w: %s", command, err, out)
		}
		all.Write(out)
	}
	return all.String(), nil
}
