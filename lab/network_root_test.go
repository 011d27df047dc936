//go:build root

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestMain gives the tests a lab of their own; one that somebody uses on the
// same machine is left alone.
func TestMain(m *testing.M) {
	name := fmt.Sprintf("poddtest-lab-%d", os.Getpid())
	place.run, place.dir, place.prefix = "/run/"+name, "/var/tmp/"+name, name+"-"
	code := m.Run()
	if err := os.RemoveAll(programsDir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// requireNone fails when a lab is up: tests must not take down somebody's.
func requireNone(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test makes a lab: run it as root")
	}
	lines, err := Leftovers()
	if err != nil {
		t.Fatal(err)
	}
	if len(lines) > 0 {
		t.Fatalf("a lab is up, or was left behind; podctl lab down removes it:\n%s", strings.Join(lines, "\n"))
	}
}

// requireDown takes the lab down and checks that nothing is left.
func requireDown(t *testing.T, l *Lab) {
	t.Helper()
	if err := l.Down(context.Background()); err != nil {
		t.Error(err)
	}
	lines, err := Leftovers(l.Dir)
	if err != nil {
		t.Error(err)
	}
	if len(lines) > 0 {
		t.Errorf("left behind:\n%s", strings.Join(lines, "\n"))
	}
}

// newNetwork makes a lab's network without its daemons.
func newNetwork(t *testing.T, o Options) *Lab {
	t.Helper()
	requireNone(t)
	o.Dir = filepath.Join(t.TempDir(), "lab")
	l, err := newLab(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := l.claim(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { requireDown(t, l) })
	if err := l.prepare(); err != nil {
		t.Fatal(err)
	}
	return l
}

// stream sends data from one node to an address of another and returns how
// long it took.
func stream(t *testing.T, l *Lab, from, to, address string, data []byte) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	listener, err := l.Listen(ctx, to, "tcp4", net.JoinHostPort(address, "0"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	received := make(chan error, 1)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			var got []byte
			got, err = io.ReadAll(conn)
			if !bytes.Equal(got, data) {
				err = fmt.Errorf("%d bytes arrived (%w); want the %d that were sent", len(got), err, len(data))
			}
			conn.Close()
		}
		received <- err
	}()
	begin := time.Now()
	conn, err := l.Dial(ctx, from, "tcp4", listener.Addr().String())
	if err != nil {
		t.Fatalf("from %s to %s at %s: %v", from, to, address, err)
	}
	_, err = conn.Write(data)
	if err := errors.Join(err, conn.Close(), <-received); err != nil {
		t.Fatalf("from %s to %s at %s: %v", from, to, address, err)
	}
	return time.Since(begin)
}

func TestRootNetwork(t *testing.T) {
	before, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	l := newNetwork(t, Options{Hosts: 3})
	for _, pair := range [][2]string{{"a", "b"}, {"b", "c"}, {Client, "a"}, {Client, Proxy}, {"c", Proxy}, {"a", Client}, {"a", "a"}} {
		stream(t, l, pair[0], pair[1], l.Address(pair[1]).String(), []byte("hello"))
	}
	// The public prefix leads to the proxy, from clients and hosts.
	public := PublicPrefix.Addr().Next()
	err = l.Do(Proxy, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(public, 32))})
	})
	if err != nil {
		t.Fatal(err)
	}
	stream(t, l, Client, Proxy, public.String(), []byte("hello"))
	stream(t, l, "a", Proxy, public.String(), []byte("hello"))

	// Nothing of it is in the machine's own namespace, and no way leads out.
	after, err := netlink.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	if len(after) != len(before) {
		t.Errorf("the machine has %d links; it had %d", len(after), len(before))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if conn, err := l.Dial(ctx, "a", "tcp4", "203.0.113.1:80"); !errors.Is(err, unix.ENETUNREACH) && !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("from a to outside: connection %v, error %v; want unreachable", conn, err)
	}
}

func TestRootCommand(t *testing.T) {
	l := newNetwork(t, Options{Hosts: 2})
	out, err := l.Command("b", "ip", "-brief", "-4", "addr", "show", uplink).Output()
	if err != nil || !strings.Contains(string(out), "10.10.2.2/24") {
		t.Errorf("addresses of b: %q, error %v", out, err)
	}
	// What `ip netns exec` would hide.
	if out, err := l.Command("b", "ls", "/sys/fs/cgroup").Output(); err != nil || len(out) == 0 {
		t.Errorf("cgroups seen from b: %q, error %v", out, err)
	}
	var exit *exec.ExitError
	if err := l.Command("a", "sh", "-c", "exit 7").Run(); !errors.As(err, &exit) || exit.ExitCode() != 7 {
		t.Errorf("exit 7: error %v", err)
	}
	if err := l.Command("a", "/nonexistent/program").Run(); !errors.As(err, &exit) || exit.ExitCode() != 127 {
		t.Errorf("a program that isn't there: error %v", err)
	}
	if _, err := l.Dial(t.Context(), "z", "tcp", "10.10.1.2:1"); err == nil {
		t.Error("dialing from an unknown node")
	}
}

func TestRootLinkRate(t *testing.T) {
	l := newNetwork(t, Options{Hosts: 2, LinkRate: "40mbit"})
	const size, rate, burst = 3 << 20, 40e6 / 8, 128 << 10
	least := time.Duration(float64(size-2*burst) / rate * float64(time.Second))
	for _, pair := range [][2]string{{"a", "b"}, {"b", "a"}} {
		if took := stream(t, l, pair[0], pair[1], l.Address(pair[1]).String(), make([]byte, size)); took < least*8/10 {
			t.Errorf("3 MiB from %s to %s took %v; want %v at least", pair[0], pair[1], took, least)
		}
	}
}

func TestRootSecondUp(t *testing.T) {
	l := newNetwork(t, Options{Hosts: 2})
	bin := t.TempDir()
	for _, name := range []string{"podd", "podproxy", "podinit"} {
		if err := os.WriteFile(filepath.Join(bin, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Up(t.Context(), Options{Dir: filepath.Join(t.TempDir(), "other"), BinDir: bin})
	if !errors.Is(err, ErrUp) || !strings.Contains(err.Error(), "2 hosts") {
		t.Errorf("a second lab: error %v; want one that wraps ErrUp", err)
	}
	loaded, err := Load()
	if err != nil || loaded.Dir != l.Dir || !slices.Equal(loaded.Nodes(), l.Nodes()) {
		t.Errorf("loaded %+v, error %v", loaded, err)
	}
}

// Down clears away processes that nobody noted, frozen ones too, and mounts,
// and does not touch what is mounted.
func TestRootDownFindsEverything(t *testing.T) {
	l := newNetwork(t, Options{Hosts: 2})
	kept := filepath.Join(t.TempDir(), "kept")
	if err := os.WriteFile(kept, []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{l.StateDir("a"), filepath.Join(l.RunDir("a"), "bound")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range [][3]string{{"tmpfs", l.StateDir("a"), "tmpfs"}, {filepath.Dir(kept), filepath.Join(l.RunDir("a"), "bound"), ""}} {
		flags := uintptr(0)
		if m[2] == "" {
			flags = unix.MS_BIND
		}
		if err := unix.Mount(m[0], m[1], m[2], flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	node := l.Command("a", "sleep", "1000")
	group := exec.Command("sleep", "1000")
	for _, cmd := range []*exec.Cmd{node, group} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	}
	freeze(t, l.CgroupParent("a"), group.Process.Pid)

	lines, err := Leftovers(l.Dir)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(lines, "\n")
	for _, want := range []string{
		fmt.Sprintf("process %d sleep 1000", node.Process.Pid), fmt.Sprintf("process %d sleep 1000", group.Process.Pid),
		"mount " + l.StateDir("a"), "mount " + l.RunDir("a") + "/bound", "namespace " + l.Namespace(Router),
		l.CgroupParent("a") + "/frozen", "directory " + l.Dir, "directory " + place.run,
	} {
		if !strings.Contains(all, want) {
			t.Errorf("leftovers have no %q:\n%s", want, all)
		}
	}
	requireDown(t, l)
	for _, cmd := range []*exec.Cmd{node, group} {
		var exit *exec.ExitError
		if err := cmd.Wait(); !errors.As(err, &exit) {
			t.Errorf("process %d ended with %v; want killed", cmd.Process.Pid, err)
		}
	}
	if data, err := os.ReadFile(kept); err != nil || string(data) != "kept" {
		t.Errorf("what was bound in: %q, error %v", data, err)
	}
	if err := Down(t.Context()); err != nil {
		t.Errorf("down again: %v", err)
	}
	if _, err := Load(); !errors.Is(err, ErrNone) {
		t.Errorf("load: error %v; want one that wraps ErrNone", err)
	}
}

// freeze puts a process into a frozen cgroup below parent.
func freeze(t *testing.T, parent string, pid int) {
	t.Helper()
	root, file, value := filepath.Join(cgroupRoot, "freezer"), "freezer.state", "FROZEN"
	if _, err := os.Stat(root); err != nil {
		root, file, value = cgroupRoot, "cgroup.freeze", "1"
	}
	dir := filepath.Join(root, parent, "frozen")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, w := range [][2]string{{"cgroup.procs", fmt.Sprint(pid)}, {file, value}} {
		if err := os.WriteFile(filepath.Join(dir, w[0]), []byte(w[1]), 0); err != nil {
			t.Fatal(err)
		}
	}
}

// A lab whose making was cut short anywhere can be taken down.
func TestRootDownHalfMade(t *testing.T) {
	for name, make := range map[string]func(l *Lab) error{
		"claimed": func(*Lab) error { return nil },
		"noted":   func(l *Lab) error { return l.save() },
		"note cut short": func(l *Lab) error {
			return os.WriteFile(configPath(), []byte(`{"hosts":`), 0o644)
		},
		"namespace not mounted": func(l *Lab) error {
			if err := l.save(); err != nil {
				return err
			}
			if err := os.MkdirAll(netnsDir, 0o755); err != nil {
				return err
			}
			return os.WriteFile(l.Namespace("a"), nil, 0o400)
		},
	} {
		t.Run(name, func(t *testing.T) {
			requireNone(t)
			l, err := newLab(Options{})
			if err != nil {
				t.Fatal(err)
			}
			if err := l.claim(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { requireDown(t, l) })
			if err := make(l); err != nil {
				t.Fatal(err)
			}
			if err := Down(t.Context()); err != nil {
				t.Error(err)
			}
			requireNone(t)
		})
	}
}
