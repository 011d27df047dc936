//go:build root

package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A pod's root may do what it likes with its own files; podd reads nothing of
// the host's through them and does not hang.
func TestHostileTree(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("77\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{
		"link":      "ln -sf " + secret + " /.podd/exit; mkdir /.podd/exit.tmp; ln -sf " + secret + " /.podd/stdout.0",
		"fifo":      "rm /.podd/stdout.0; mkfifo /.podd/stdout.0 /.podd/exit; mkdir /.podd/exit.tmp",
		"directory": "mv /.podd /x; ln -s " + filepath.Dir(secret) + " /.podd",
		"nonsense":  "mkdir /.podd/exit.tmp; echo 99999999999999999999 >/.podd/exit; echo x >/.podd/stdout.-5; echo x >/.podd/stdout.99999999999999999999",
		"removed":   "rm -rf /.podd",
	} {
		t.Run(name, func(t *testing.T) {
			config := testConfig(t, "sh", "-c", "sleep 0; "+script+"; exit 5")
			config.Spec.Name = name
			c := start(t, r, config)
			if code := wait(t, c); code != ExitKilled {
				t.Errorf("ended with %d", code)
			}
			var said strings.Builder
			err := c.Logs(testContext(t), LogOptions{Tail: -1}, func(o Output) error { said.Write(o.Stdout); return nil })
			if strings.Contains(said.String(), "77") {
				t.Error("the log was read from the host")
			}
			// Reading it may fail, but comes to an end.
			t.Logf("logs: %v", err)
			if err := c.Destroy(testContext(t)); err != nil {
				t.Error(err)
			}
		})
	}
	// While it runs: sockets and the user database.
	config := testConfig(t, "sh", "-c", "rm /.podd/main.sock; ln -s "+secret+" /.podd/main.sock; ln -sf /proc/1/root"+secret+" /etc/passwd; echo ready; sleep 1000")
	c := start(t, r, config)
	eventually(t, "the pod is ready", func() bool { out, _ := logs(t, c); return out == "ready\n" })
	if _, err := c.Attach(testContext(t)); !errors.Is(err, unix.ELOOP) {
		t.Errorf("attaching through a link: %v", err)
	}
	if data, err := c.readFile("/etc/passwd", maxEtcFile); err == nil {
		t.Errorf("read %q through a link", data)
	}
	if err := c.Destroy(testContext(t)); err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(secret); err != nil || string(data) != "77\n" {
		t.Errorf("the host's file: %q, %v", data, err)
	}
}

// An upper layer that comes from another host can't make podd change the host.
func TestHostileUpper(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	config := testConfig(t, "true")
	config.Restore = true
	c, err := r.Prepare(testContext(t), config)
	if err != nil {
		t.Fatal(err)
	}
	victim := t.TempDir()
	for _, name := range []string{"etc", "opt", "var", "home", "root"} {
		if err := os.Symlink(victim, filepath.Join(c.paths.upper, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Mount(); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(victim)
	if err != nil || len(entries) > 0 {
		t.Errorf("the host has now %v, %v", entries, err)
	}
}

// Nor can it, by the marks of overlayfs, make a pod see files of the host that are
// hidden from it.
func TestHostileOverlay(t *testing.T) {
	secrets := filepath.Join("/root", unique())
	if err := os.Mkdir(secrets, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(secrets) })
	if err := os.WriteFile(filepath.Join(secrets, "key"), []byte("hidden"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := openRuntime(t, testOptions(t))
	config := testConfig(t, "true")
	config.Restore = true
	c, err := r.Prepare(testContext(t), config)
	if err != nil {
		t.Fatal(err)
	}
	dir, file := filepath.Join(c.paths.upper, "dir"), filepath.Join(c.paths.upper, "file")
	// What hides them can be there before, and is not needed twice.
	if err := errors.Join(c.Cover(), c.Cover()); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{
		os.Mkdir(dir, 0o755),
		unix.Setxattr(dir, "trusted.overlay.redirect", []byte(secrets), 0),
		os.WriteFile(file, make([]byte, 6), 0o644),
		unix.Setxattr(file, "trusted.overlay.redirect", []byte(filepath.Join(secrets, "key")), 0),
		unix.Setxattr(file, "trusted.overlay.metacopy", nil, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.MountCovered(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(c.Root(), secrets)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the host's private directory is there: %v", err)
	}
	// The kernel refuses such files; that they are what they seem would do.
	if data, err := os.ReadFile(filepath.Join(c.Root(), "dir/key")); err == nil {
		t.Errorf("the pod's directory has the host's file: %q", data)
	}
	if data, err := os.ReadFile(filepath.Join(c.Root(), "file")); err == nil && strings.Contains(string(data), "hidden") {
		t.Errorf("the pod's file is the host's: %q", data)
	}
}

// System calls that a pod must not make, or that CRIU could not dump, fail as
// programs expect them to.
func TestSystemCallFilter(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	script := `
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
for name, args in [
	("unshare user", (272, 0x10000000)), ("unshare net", (272, 0x40000000)), ("clone user", (56, 0x10000011, 0, 0, 0, 0)),
	("clone3", (435, 0, 0)), ("io_uring_setup", (425, 1, 0)), ("io_uring_enter", (426, 0, 0, 0, 0, 0)), ("io_uring_register", (427, 0, 0, 0, 0)),
	("landlock_create_ruleset", (444, 0, 0, 1)), ("landlock_restrict_self", (446, -1, 0)),
	("mount", (165, 0, 0, 0, 0, 0)), ("bpf", (321, 0, 0, 0)), ("setns", (308, 0, 0)), ("keyctl", (250, 0, 0, 0)), ("kexec_load", (246, 0, 0, 0, 0)),
	("init_module", (175, 0, 0, 0)), ("perf_event_open", (298, 0, 0, 0, 0, 0)), ("userfaultfd", (323, 0)), ("open_by_handle_at", (304, 0, 0, 0)),
	("pivot_root", (155, 0, 0)), ("reboot", (169, 0, 0, 0, 0)), ("no such call", (1000, 0)), ("getpid", (39,)),
]:
	ctypes.set_errno(0)
	result = libc.syscall(*args)
	print(name, result if result < 0 else "ok", ctypes.get_errno())
`
	want := fmt.Sprintf(`unshare user -1 %[1]d
unshare net -1 %[1]d
clone user -1 %[1]d
clone3 -1 %[2]d
io_uring_setup -1 %[2]d
io_uring_enter -1 %[2]d
io_uring_register -1 %[2]d
landlock_create_ruleset -1 %[2]d
landlock_restrict_self -1 %[2]d
mount -1 %[1]d
bpf -1 %[1]d
setns -1 %[1]d
keyctl -1 %[1]d
kexec_load -1 %[1]d
init_module -1 %[1]d
perf_event_open -1 %[1]d
userfaultfd -1 %[1]d
open_by_handle_at -1 %[1]d
pivot_root -1 %[1]d
reboot -1 %[1]d
no such call -1 %[2]d
getpid ok 0
`, unix.EPERM, unix.ENOSYS)
	for _, user := range []string{"0", "1000"} {
		c := start(t, r, func() Config {
			c := testConfig(t, "python3", "-c", script)
			c.Spec.Name, c.Spec.User = "user"+user, user
			return c
		}())
		code := wait(t, c)
		out, stderr := logs(t, c)
		if code != 0 || out != want {
			t.Errorf("user %s: got %d, %s, %s", user, code, out, stderr)
		}
	}
	code, out, stderr := sh(t, r, "cat /proc/kcore /proc/keys | wc -c; echo 1 >/proc/sys/kernel/printk; echo x >/sys/kernel/x; mknod /tmp/m c 1 1")
	if code == 0 || out != "0\n" || strings.Count(stderr, "Read-only file system") != 2 || !strings.Contains(stderr, "Operation not permitted") {
		t.Errorf("got %d, %q, %q", code, out, stderr)
	}
}
