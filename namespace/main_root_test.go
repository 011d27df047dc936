//go:build root

package namespace

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/namespace/image"
	"podd/pod"
)

// testTimeout bounds every wait of a test.
const testTimeout = time.Minute

// initPath is podinit, built for this run of the tests.
var initPath string

func TestMain(m *testing.M) {
	Init() // libcontainer starts the test program as a pod's first process
	if len(os.Args) > 1 && os.Args[1] == helperArg {
		helper(os.Args[2:])
	}
	if os.Getuid() != 0 {
		log.Fatal("these tests make namespaces: run them as root")
	}
	dir, err := os.MkdirTemp("", "poddtest-namespace-")
	if err != nil {
		log.Fatal(err)
	}
	initPath = filepath.Join(dir, "podinit")
	build := exec.Command("cc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", initPath, "podinit/podinit.c")
	if out, err := build.CombinedOutput(); err != nil {
		log.Fatalf("building podinit: %v\n%s", err, out)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// images resolves what the built-in images are, without a store.
type images map[string]image.Image

func (i images) Resolve(name string) (image.Image, error) {
	img, ok := i[name]
	if !ok {
		return image.Image{}, pod.ErrNotFound
	}
	return img, nil
}

var hostImage = images{"host": {Name: image.HostName}}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	t.Cleanup(cancel)
	return ctx
}

var counter atomic.Int64

// unique is a name nobody else on the machine uses.
func unique() string { return fmt.Sprintf("poddtest-namespace-%d-%d", os.Getpid(), counter.Add(1)) }

func testOptions(t *testing.T) Options {
	dir := t.TempDir()
	return Options{
		StateDir:     filepath.Join(dir, "state"),
		RunDir:       filepath.Join(dir, "run"),
		CgroupParent: unique(),
		InitPath:     initPath,
		Images:       hostImage,
	}
}

// openRuntime opens a runtime that leaves nothing behind, and checks that.
func openRuntime(t *testing.T, opts Options) *Runtime {
	t.Helper()
	r, err := Open(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		remains, err := r.Remains()
		if err != nil {
			t.Error(err)
		}
		for _, c := range remains {
			if err := r.Remove(context.Background(), c.Name, c.Epoch); err != nil {
				t.Error(err)
			}
		}
		if err := r.RemoveCgroupParent(); err != nil {
			t.Error(err)
		}
		if left := cgroupDirs(r.opts.CgroupParent); len(left) > 0 && exists(left[0]) {
			t.Errorf("cgroups are left: %v", left)
		}
		if mounts := mountsBelow(t, opts.RunDir); len(mounts) > 0 {
			t.Errorf("mounts are left: %v", mounts)
		}
	})
	return r
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func mountsBelow(t *testing.T, dir string) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], dir+"/") {
			found = append(found, fields[4])
		}
	}
	return found
}

// netns makes a network namespace with loopback up, held by a bind mount.
func netns(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "netns")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = unix.Mount(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("making a network namespace: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Errorf("unmounting a network namespace: %v", err)
		}
	})
	return path
}

func testConfig(t *testing.T, command ...string) Config {
	return Config{
		Spec:       pod.Spec{Name: "alice", Image: "host", Command: command},
		Epoch:      1,
		NetNS:      netns(t),
		Address:    netip.MustParseAddr("100.64.0.1"),
		Nameserver: pod.Gateway,
		Search:     "pods.internal",
	}
}

// start prepares and starts a pod.
func start(t *testing.T, r *Runtime, config Config) *Container {
	t.Helper()
	ctx := testContext(t)
	c, err := r.Prepare(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx, nil); err != nil {
		t.Fatal(err)
	}
	return c
}

func wait(t *testing.T, c *Container) int {
	t.Helper()
	code, err := c.Wait(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// logs returns all that is kept of both streams.
func logs(t *testing.T, c *Container) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	err := c.Logs(testContext(t), LogOptions{Tail: -1}, func(o Output) error {
		out.Write(o.Stdout)
		errs.Write(o.Stderr)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String(), errs.String()
}

// sh runs a shell script as a pod's main command and returns what it said.
func sh(t *testing.T, r *Runtime, script string, change ...func(*Config)) (code int, stdout, stderr string) {
	t.Helper()
	config := testConfig(t, "sh", "-c", script)
	config.Spec.Name = fmt.Sprintf("pod%d", counter.Add(1))
	for _, f := range change {
		f(&config)
	}
	c := start(t, r, config)
	code = wait(t, c)
	stdout, stderr = logs(t, c)
	if err := c.Destroy(testContext(t)); err != nil {
		t.Fatal(err)
	}
	return code, stdout, stderr
}

// eventually waits for a condition that nothing announces.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	deadline := time.Now().Add(testTimeout)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting until %s", what)
		}
		<-tick.C
	}
}

func asUser(user string) func(*Config) {
	return func(c *Config) { c.Spec.User = user }
}
