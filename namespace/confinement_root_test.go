//go:build root

package namespace

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// What a pod may be at most is what a new pod is.
func TestConfinement(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	c, err := r.Prepare(testContext(t), Config{Spec: pod.Spec{Name: "alice", Image: "host", NoNewPrivileges: true, PIDs: 7, Command: []string{"true"}}, Epoch: 1, NetNS: "/proc/self/ns/net"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Destroy(testContext(t)); err != nil {
			t.Error(err)
		}
	})
	confined, err := c.Confinement()
	if err != nil {
		t.Fatal(err)
	}
	if !confined.NoNewPrivileges || confined.PIDs != 7 || confined.Capabilities != 0x800405fb {
		t.Errorf("got %+v", confined)
	}
	if n := len(confined.SystemCallFilter); n < 1000 || n%8 != 0 {
		t.Errorf("the filter has %d bytes", n)
	}
	// libcontainer leaves the order of some parts to chance; package checkpoint
	// compares filters by what they do, if they are of one length.
	again, err := readFilter()
	if err != nil || len(again) != len(confined.SystemCallFilter) {
		t.Errorf("the filter has %d bytes the second time (%v), %d the first", len(again), err, len(confined.SystemCallFilter))
	}
	found := map[string]ConfinedMount{}
	for _, m := range confined.Mounts {
		if _, ok := found[m.Destination]; ok {
			t.Errorf("%s is there twice", m.Destination)
		}
		found[m.Destination] = m
	}
	for _, want := range []ConfinedMount{
		{"/proc", "proc", "/", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, false},
		{"/sys", "sysfs", "/", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC | unix.MS_RDONLY, false},
		{"/proc/sys", "proc", "/sys", unix.MS_RDONLY, true},
		{"/dev", "", "", unix.MS_NOSUID, false},
		{"/proc/no-such-thing", "", "", 0, false},
	} {
		got, ok := found[want.Destination]
		if ok != (want.Destination != "/proc/no-such-thing") || ok && got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
}

// What a pod is told in its environment, and the set-user-ID files in its layer,
// are behind directories that only root can enter.
func TestPrivateState(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	config := testConfig(t, "sleep", "1000")
	config.Spec.Env = []string{"SECRET=x"}
	c := start(t, r, config)
	for path, want := range map[string]os.FileMode{
		c.paths.state: os.ModeDir | 0o700, c.paths.record: 0o600, filepath.Dir(c.paths.rootfs): os.ModeDir | 0o700, filepath.Dir(c.paths.volatile): os.ModeDir | 0o700,
	} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", path, info.Mode(), want)
		}
	}
}
