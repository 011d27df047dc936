//go:build root

package namespace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/pod"
)

// criu runs criu in a network namespace, after join (if any) has been called
// with its process ID.
func criu(t *testing.T, netns, images string, join func(pid int) error, args ...string) error {
	t.Helper()
	args = append([]string{
		"-c", `read go; exec nsenter --net="$0" criu "$@"`, netns, args[0], "-D", images, "-o", args[0] + ".log", "-v4",
		"--tcp-established", "--file-locks", "--link-remap", "--ghost-limit", "256M", "--manage-cgroups=ignore",
		"--network-lock", "skip", "--file-validation", "filesize",
	}, args[1:]...)
	cmd := exec.CommandContext(testContext(t), "sh", args...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var output strings.Builder
	cmd.Stdout, cmd.Stderr = &output, &output
	// A restored process inherits the pipe for output and would be waited for.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if join != nil {
		if err := join(cmd.Process.Pid); err != nil {
			t.Error(err)
		}
	}
	if _, err := stdin.Write([]byte("\n")); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		log, _ := os.ReadFile(filepath.Join(images, args[3]+".log"))
		var tail []string
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "Error") || strings.Contains(line, "Warn") {
				tail = append(tail, line)
			}
		}
		return fmt.Errorf("criu: %w: %s\n%s", err, output.String(), strings.Join(tail, ""))
	}
	return nil
}

// A pod with everything the package itself holds open is dumped by criu, and
// restored from its files elsewhere.
func TestCheckpoint(t *testing.T) {
	ctx := testContext(t)
	source := openRuntime(t, testOptions(t))
	config := testConfig(t, "sh", "-c", `while read line; do echo "$line $((n += 1))"; echo "err $n" >&2; done; exit 6`)
	config.Spec.User, config.Spec.Stdin = "1000", true
	volume := t.TempDir()
	if err := os.WriteFile(filepath.Join(volume, "file"), []byte("content\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	config.Spec.Volumes = []pod.Volume{
		{Source: volume, Destination: "/mnt/shared", ReadOnly: true},
		{Source: "data", Destination: "/home/data"},
	}
	c := start(t, source, config)
	checkMounts(t, c)
	attached, err := c.Attach(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer attached.Close()
	say := func(s *Session, text string) {
		t.Helper()
		if _, err := s.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	say(attached, "before\n")
	eventually(t, "the main command has answered", func() bool { out, _ := logs(t, c); return out == "before 1\n" })
	tty := startExec(t, c, ExecConfig{Command: []string{"sh", "-c", "stty -echo; echo ready; read x; echo got $x; exit 8"}, TTY: true})
	piped := startExec(t, c, ExecConfig{Command: []string{"sh", "-c", "echo ready; read x; echo got $x $(cat /mnt/shared/file); exit 9"}, Stdin: true, User: "root"})
	for _, s := range []*Session{tty, piped} {
		if e, err := s.Read(); err != nil || !strings.HasPrefix(string(e.Stdout), "ready") {
			t.Fatalf("got %q, %v", e.Stdout, err)
		}
	}
	if err := c.CloseSessions(ctx); err != nil {
		t.Fatal(err)
	}

	images := t.TempDir()
	pid, ok := c.PID()
	if !ok {
		t.Fatal("the pod does not run")
	}
	var external []string
	for destination := range c.ExternalMounts() {
		external = append(external, "--external", "mnt["+destination+"]:"+destination)
	}
	dump := append([]string{"dump", "-t", strconv.Itoa(pid)}, external...)
	if err := criu(t, config.NetNS, images, nil, append(dump, "--leave-running")...); err != nil {
		t.Fatal(err)
	}
	c.OpenSessions()
	again, err := c.Attach(ctx)
	if err != nil {
		t.Fatal(err)
	}
	say(again, "between\n")
	eventually(t, "the pod goes on after a dump", func() bool { out, _ := logs(t, c); return out == "before 1\nbetween 2\n" })
	if err := c.CloseSessions(ctx); err != nil {
		t.Fatal(err)
	}
	images = t.TempDir()
	if err := criu(t, config.NetNS, images, nil, dump...); err != nil {
		t.Fatal(err)
	}

	target := openRuntime(t, testOptions(t))
	config.Epoch, config.NetNS, config.Restore = 2, netns(t), true
	moved, err := target.Prepare(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	from := c.Trees()
	for i, to := range moved.Trees() {
		copyTree(t, from[i].Path, to.Path)
	}
	if err := c.Destroy(ctx); err != nil {
		t.Fatal(err)
	}
	if err := moved.Mount(); err != nil {
		t.Fatal(err)
	}
	pidfile := filepath.Join(t.TempDir(), "pid")
	restore := []string{"restore", "--restore-detached", "--restore-sibling", "--pidfile", pidfile, "--root", moved.Root()}
	for destination, source := range moved.ExternalMounts() {
		restore = append(restore, "--external", "mnt["+destination+"]:"+source)
	}
	if err := criu(t, config.NetNS, images, moved.JoinCgroup, restore...); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(pidfile)
	if err != nil {
		t.Fatal(err)
	}
	if pid, err = strconv.Atoi(strings.TrimSpace(string(text))); err != nil {
		t.Fatal(err)
	}
	if err := moved.Adopt(pid); err != nil {
		t.Fatal(err)
	}

	for _, s := range []struct {
		id   string
		code int
		want string
	}{{tty.ID(), 8, "got x\r\n"}, {piped.ID(), 9, "got x content\n"}} {
		again, err := moved.Session(ctx, s.id)
		if err != nil {
			t.Fatal(err)
		}
		say(again, "x\n")
		if code, out, stderr := sessionOutput(t, again); code != s.code || out != s.want {
			t.Errorf("the session ended with %d and said %q and %q", code, out, stderr)
		}
	}
	if code, out, stderr := sessionOutput(t, startExec(t, moved, ExecConfig{Command: []string{"sh", "-c", "hostname; id -u; unshare -U true"}})); code == 0 || out != "alice\n1000\n" {
		t.Errorf("a new session ended with %d and said %q and %q", code, out, stderr)
	}
	checkMounts(t, moved)
	if attached, err = moved.Attach(ctx); err != nil {
		t.Fatal(err)
	}
	defer attached.Close()
	say(attached, "after\n")
	if err := attached.CloseInput(); err != nil {
		t.Fatal(err)
	}
	if code := wait(t, moved); code != 6 {
		t.Errorf("the pod ended with %d", code)
	}
	if out, errs := logs(t, moved); out != "before 1\nbetween 2\nafter 3\n" || errs != "err 1\nerr 2\nerr 3\n" {
		t.Errorf("the log says %q and %q", out, errs)
	}
}

// checkMounts verifies that mounts are as restricted as they should be, whoever
// made them.
func checkMounts(t *testing.T, c *Container) {
	t.Helper()
	pid, ok := c.PID()
	if !ok {
		t.Fatal("the pod does not run")
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"/": "nodev", "/proc": "nosuid nodev noexec", "/sys": "ro nosuid nodev noexec", "/dev": "nosuid",
		"/dev/pts": "nosuid noexec", "/dev/mqueue": "nosuid nodev noexec", "/tmp": "nosuid nodev", "/run": "nosuid nodev",
		"/proc/sys": "ro nosuid nodev noexec", "/proc/bus": "ro nosuid nodev noexec",
		"/mnt/shared": "ro nosuid nodev", "/home/data": "nosuid nodev",
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		destination, options := fields[4], append(strings.Split(fields[5], ","), strings.Split(fields[len(fields)-1], ",")...)
		required := want[destination]
		delete(want, destination)
		if slices.Contains(maskedDirs, destination) {
			required = "ro"
		}
		for option := range strings.FieldsSeq(required) {
			if !slices.Contains(options, option) {
				t.Errorf("mount without %s: %s", option, line)
			}
		}
	}
	if len(want) > 0 {
		t.Errorf("mounts are missing: %v", want)
	}
}

// copyTree copies as a move does: without what binds an upper layer to its host.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from+"/.", to).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	err := filepath.WalkDir(to, func(path string, _ fs.DirEntry, err error) error {
		for _, name := range []string{"origin", "uuid", "nlink", "impure"} {
			if e := unix.Lremovexattr(path, "trusted.overlay."+name); e != nil && e != unix.ENODATA && e != unix.EOPNOTSUPP {
				err = errors.Join(err, &os.PathError{Op: "lremovexattr", Path: path, Err: e})
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
