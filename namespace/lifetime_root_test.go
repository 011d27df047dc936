//go:build root

package namespace

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// Another process finds the pods, speaks with them and learns how they end.
func TestRestart(t *testing.T) {
	opts := testOptions(t)
	r := openRuntime(t, opts)
	c := start(t, r, testConfig(t, "sh", "-c", "trap 'exit 11' TERM; while :; do sleep 0.01; done"))
	if got := runHelper(t, opts, "list"); got != "alice.1 true\n" {
		t.Errorf("listed %q", got)
	}
	if _, ended, err := c.Exited(); err != nil || ended {
		t.Errorf("a pod that runs has ended: %v, %v", ended, err)
	}
	if got := runHelper(t, opts, "exec", "alice", "sh", "-c", "hostname; exit 5"); got != "alice\n5\n" {
		t.Errorf("a session said %q", got)
	}
	// The other one waits while this one, the parent, does too.
	done := make(chan string)
	go func() { done <- runHelper(t, opts, "wait", "alice") }()
	if err := c.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := wait(t, c); code != 11 {
		t.Errorf("ended with %d", code)
	}
	if got := <-done; got != "waiting\n11\n" {
		t.Errorf("the other process learned %q", got)
	}
	if got := runHelper(t, opts, "list"); got != "alice.1 false\n" {
		t.Errorf("listed %q", got)
	}
	// The exit status and the log outlive the mounts.
	if err := c.Release(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if got := runHelper(t, opts, "wait", "alice"); got != "waiting\n11\n" {
		t.Errorf("after Release: %q", got)
	}
	again, err := r.Load("alice", 1)
	if err != nil {
		t.Fatal(err)
	}
	logs(t, again)
	if status, ended, err := again.Exited(); err != nil || !ended || status != 11 {
		t.Errorf("it left %d, %v, %v", status, ended, err)
	}
	if found, err := r.Remains(); err != nil || len(found) != 1 || found[0].Live {
		t.Errorf("what is left of an ended pod: %+v, %v", found, err)
	}
	if _, err := r.Load("alice", 2); !errors.Is(err, pod.ErrNotFound) {
		t.Errorf("loading what is not there: %v", err)
	}
}

// A pod whose init is killed leaves no status: nobody can say how it ended.
func TestKilledInit(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	c := start(t, r, testConfig(t, "sleep", "1000"))
	if err := c.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := wait(t, c); code != ExitKilled {
		t.Errorf("ended with %d", code)
	}
	if status, ended, err := c.Exited(); err != nil || ended {
		t.Errorf("it left %d, %v, %v", status, ended, err)
	}
}

// A process that has the init's PID later is not taken for it.
func TestReusedPID(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	c := start(t, r, testConfig(t, "true"))
	wait(t, c)
	c, err := r.Load("alice", 1)
	if err != nil {
		t.Fatal(err)
	}
	c.record.Process.PID = os.Getpid()
	if pid, running := c.PID(); running {
		t.Errorf("process %d is taken for the init", pid)
	}
	if err := c.Signal(unix.SIGKILL); !errors.Is(err, pod.ErrPhase) {
		t.Errorf("got %v", err)
	}
}

func TestPrepareTwice(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	config := testConfig(t, "true")
	ctx := testContext(t)
	c, err := r.Prepare(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Prepare(ctx, config); !errors.Is(err, pod.ErrExists) {
		t.Errorf("got %v", err)
	}
	if _, err := c.Wait(ctx); !errors.Is(err, pod.ErrPhase) {
		t.Errorf("waiting for what was never started: %v", err)
	}
	// The next incarnation may be prepared while the last is still there.
	config.Epoch = 2
	if _, err := r.Prepare(ctx, config); err != nil {
		t.Error(err)
	}
}

func TestTwoPods(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	var pods []*Container
	for _, name := range []string{"alice", "bob"} {
		config := testConfig(t, "sh", "-c", "echo "+name+" >/tmp/name; echo "+name+" >/home/name; echo ready; sleep 1000")
		config.Spec.Name = name
		pods = append(pods, start(t, r, config))
	}
	for i, c := range pods {
		eventually(t, "the pod is ready", func() bool { out, _ := logs(t, c); return out == "ready\n" })
		code, out, stderr := sessionOutput(t, startExec(t, c, ExecConfig{Command: []string{"cat", "/tmp/name", "/home/name"}}))
		if name := c.Name(); code != 0 || out != name+"\n"+name+"\n" {
			t.Errorf("pod %d: %d, %q, %q", i, code, out, stderr)
		}
	}
	if err := pods[0].Destroy(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if _, running := pods[1].PID(); !running {
		t.Error("the second pod ended with the first")
	}
}

// Nothing is left of a destroyed pod, and destroying is possible at any stage
// and any number of times.
func TestDestroy(t *testing.T) {
	opts := testOptions(t)
	r := openRuntime(t, opts)
	config := testConfig(t, "sh", "-c", "setsid sleep 1000 & trap '' TERM; sleep 1000")
	config.Spec.Volumes = []pod.Volume{{Source: "data", Destination: "/data"}}
	c := start(t, r, config)
	pid, _ := c.PID()
	for range 2 {
		if err := c.Destroy(testContext(t)); err != nil {
			t.Fatal(err)
		}
		for _, path := range append([]string{c.paths.state, c.paths.run, c.paths.libcontainer}, cgroupDirs(c.paths.cgroup)...) {
			if exists(path) {
				t.Errorf("%s is left", path)
			}
		}
		if mounts := mountsBelow(t, opts.RunDir); len(mounts) > 0 {
			t.Errorf("mounts are left: %v", mounts)
		}
		if err := unix.Kill(pid, 0); err != unix.ESRCH {
			t.Errorf("the init is left: %v", err)
		}
	}
}

// What a crashed podd leaves is found and removed by its name alone.
func TestRemains(t *testing.T) {
	opts := testOptions(t)
	r := openRuntime(t, opts)
	ns := netns(t)
	ctx := testContext(t)
	for _, stage := range []string{"prepared", "started"} {
		runHelper(t, opts, "start", ns, stage)
		c := r.container("crash.1")
		if stage == "started" {
			// The record is gone or torn: only the cgroup knows the processes.
			if err := os.WriteFile(c.paths.record, []byte("{"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		found, err := r.Remains()
		if want := []Remains{{Name: "crash", Epoch: 1, Live: true}}; err != nil || !slices.Equal(found, want) {
			t.Fatalf("found %+v (%v), want %+v", found, err, want)
		}
		if err := r.Remove(ctx, "crash", 2); err != nil {
			t.Fatal(err)
		}
		if !exists(c.paths.state) {
			t.Fatal("what was to be kept is gone")
		}
		for range 2 {
			if err := r.Remove(ctx, "crash", 1); err != nil {
				t.Fatal(err)
			}
		}
		if found, err := r.Remains(); err != nil || len(found) > 0 {
			t.Errorf("%s: still there are %+v (%v)", stage, found, err)
		}
		for _, path := range append([]string{c.paths.state, c.paths.run, c.paths.libcontainer}, cgroupDirs(c.paths.cgroup)...) {
			if exists(path) {
				t.Errorf("%s: %s is left", stage, path)
			}
		}
		if mounts := mountsBelow(t, opts.RunDir); len(mounts) > 0 {
			t.Errorf("%s: mounts are left: %v", stage, mounts)
		}
	}
}

func TestVolumes(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "file"), []byte("content\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, stderr := sh(t, r, `cat /mnt/v/file /etc/one; echo x >/mnt/v/x || echo read-only; echo y >/data/y && cat /data/y; stat -c %u /data; stat -c %a /usr/local/share`,
		func(c *Config) {
			c.Spec.User = "1000"
			c.Spec.Volumes = []pod.Volume{
				{Source: source, Destination: "/mnt/v", ReadOnly: true},
				{Source: filepath.Join(source, "file"), Destination: "/etc/one"},
				{Source: "data", Destination: "/data"},
				{Source: "share", Destination: "/usr/local/share"},
			}
		})
	if code != 0 || out != "content\ncontent\nread-only\ny\n1000\n755\n" {
		t.Errorf("got %d, %q, %q", code, out, stderr)
	}
	for _, test := range []struct {
		volume pod.Volume
		want   error
		says   string
	}{
		{pod.Volume{Source: "/no/such", Destination: "/x"}, pod.ErrNotFound, "/no/such"},
		{pod.Volume{Source: source, Destination: "/var/run/x"}, pod.ErrInvalid, "use /run/x"},
		{pod.Volume{Source: source, Destination: "/proc/sys"}, pod.ErrInvalid, "/proc"},
		{pod.Volume{Source: source, Destination: "/.podd"}, pod.ErrInvalid, "/.podd"},
	} {
		config := testConfig(t, "true")
		config.Spec.Volumes = []pod.Volume{test.volume}
		if _, err := r.Prepare(testContext(t), config); !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%+v: got %v", test.volume, err)
		}
	}
}
