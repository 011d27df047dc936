//go:build root

package podd

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"podd/daemon"
	"podd/pod"
	"podd/vnet"
	"podd/vnet/vnettest"
)

// TestCleanup: nothing of podd is left in the kernel of a host that leaves, and
// no pod is harmed by asking for it too early.
func TestCleanup(t *testing.T) {
	top := vnettest.New(t, 1)
	host := top.Hosts[0]
	config := DefaultConfig()
	config.Name, config.Address, config.StateDir, config.RunDir = "leaver", host.Address.String(), t.TempDir(), t.TempDir()
	config.CgroupParent = fmt.Sprintf("poddtest-podd-%d", os.Getpid())
	config.InitPath = filepath.Join(t.TempDir(), "podinit")
	if err := os.WriteFile(config.InitPath, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	cleanup := func() (err error) {
		host.Do(t, func() error {
			err = Cleanup(config)
			return nil
		})
		return err
	}

	d := &Daemon{settings: settings{Config: config}}
	if err := errors.Join(os.MkdirAll(d.imagesDir(), 0o700), os.MkdirAll(d.netnsDir(), 0o700), d.mountImagesDir()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.unmountImagesDir() })
	stray := d.netnsPath("ghost", 7)
	host.Do(t, func() error {
		n, err := vnet.New(vnet.Config{Physical: host.Address, Proxy: top.Proxy.Address}, slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		return errors.Join(n.EnsureAnchor(), n.EnsureFirewall(), n.CreateNamespace(stray), n.Close())
	})

	running := filepath.Join(config.RunDir, "containers", "alice.3")
	if err := os.MkdirAll(running, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := cleanup(); !errors.Is(err, pod.ErrConflict) || !strings.Contains(err.Error(), "alice") {
		t.Errorf("with a pod: %v", err)
	}
	if err := os.Remove(running); err != nil {
		t.Fatal(err)
	}
	unlock, err := daemon.Lock(config.RunDir, "podd")
	if err != nil {
		t.Fatal(err)
	}
	if err := cleanup(); !errors.Is(err, pod.ErrConflict) || !strings.Contains(err.Error(), "another podd") {
		t.Errorf("beside a podd: %v", err)
	}
	unlock()
	for range 2 {
		if err := cleanup(); err != nil {
			t.Fatal(err)
		}
	}
	host.Do(t, func() error {
		for _, command := range []string{"iptables-save", "ip link"} {
			args := strings.Fields(command)
			out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
			if err != nil {
				return err
			}
			if strings.Contains(string(out), "podd") {
				t.Errorf("%s shows\n%s", command, out)
			}
		}
		return nil
	})
	if _, err := os.Stat(stray); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s: %v", stray, err)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), config.RunDir) {
		t.Errorf("something is mounted below %s (%v)", config.RunDir, err)
	}
}
