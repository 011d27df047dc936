//go:build root

package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"

	"podd/namespace/image"
	"podd/pod"
)

func TestExitStatus(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	for _, test := range []struct {
		command []string
		want    int
		stderr  string
	}{
		{[]string{"true"}, 0, ""},
		{[]string{"sh", "-c", "exit 3"}, 3, ""},
		{[]string{"sh", "-c", "kill -TERM $$"}, 143, ""},
		{[]string{"sh", "-c", "kill -KILL $$"}, 137, ""},
		{[]string{"no-such-command"}, 127, "podinit: no-such-command: No such file or directory\n"},
		{[]string{"/etc/passwd"}, 126, "podinit: /etc/passwd: Permission denied\n"},
	} {
		for _, tty := range []bool{false, true} {
			config := testConfig(t, test.command...)
			config.Spec.TTY = tty
			c := start(t, r, config)
			if code := wait(t, c); code != test.want {
				t.Errorf("%q (terminal: %v) ended with %d, want %d", test.command, tty, code, test.want)
			}
			stdout, stderr := logs(t, c)
			if got := strings.ReplaceAll(stdout+stderr, "\r\n", "\n"); got != test.stderr {
				t.Errorf("%q (terminal: %v) said %q, want %q", test.command, tty, got, test.stderr)
			}
			if err := c.Destroy(testContext(t)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestIdentity(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	const show = `id -u; id -g; id -G; echo $HOME; pwd; umask; grep -E "^(CapEff|CapBnd|NoNewPrivs|Seccomp):" /proc/self/status | tr "\t" " "`
	for _, test := range []struct {
		user string
		nnp  bool
		want string
	}{
		{"", false, "0\n0\n0\n/root\n/\n0022\nCapEff: 00000000800405fb\nCapBnd: 00000000800405fb\nNoNewPrivs: 0\nSeccomp: 2\n"},
		{"12345:54321", true, "12345\n54321\n54321\n/\n/\n0022\nCapEff: 0000000000000000\nCapBnd: 00000000800405fb\nNoNewPrivs: 1\nSeccomp: 2\n"},
		// Debian's base-passwd: the user's groups and home are the database's.
		{"man", false, "6\n12\n12\n/var/cache/man\n/\n0022\nCapEff: 0000000000000000\nCapBnd: 00000000800405fb\nNoNewPrivs: 0\nSeccomp: 2\n"},
	} {
		code, out, stderr := sh(t, r, show, func(c *Config) { c.Spec.User, c.Spec.NoNewPrivileges = test.user, test.nnp })
		if code != 0 || out != test.want {
			t.Errorf("user %q: got %d, %q, %q; want %q", test.user, code, out, stderr, test.want)
		}
	}
	if _, err := r.Prepare(testContext(t), func() Config { c := testConfig(t, "true"); c.Spec.User = "nobody-at-all"; return c }()); !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("an unknown user: got %v", err)
	}
	// A user can write its own standard streams by name, and its home.
	code, out, stderr := sh(t, r, `echo out >/dev/stdout; echo err >/dev/stderr; touch "$HOME/x"; ls -ld "$HOME" | cut -c1-10`, asUser("games"))
	if code != 0 && out == "" {
		t.Errorf("got %d, %q, %q", code, out, stderr)
	}
	code, out, stderr = sh(t, r, `echo out >/dev/stdout; echo err >/dev/stderr`, asUser("1000"))
	if code != 0 || out != "out\n" || stderr != "err\n" {
		t.Errorf("got %d, %q, %q", code, out, stderr)
	}
}

func TestPrivateNamespaces(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	code, out, stderr := sh(t, r, `for n in pid mnt ipc uts net; do readlink /proc/1/ns/$n; done; hostname; ls /sys/class/net
		set -- /proc/[0-9]*; echo $#; cat /etc/hosts /etc/resolv.conf; cat /proc/mounts | grep -c " /proc "; ls -d /proc/self/fd/* | wc -l`)
	if code != 0 {
		t.Fatalf("got %d: %s", code, stderr)
	}
	lines := strings.Split(out, "\n")
	for i, name := range []string{"pid", "mnt", "ipc", "uts", "net"} {
		ours, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if lines[i] == ours || !strings.HasPrefix(lines[i], name+":[") {
			t.Errorf("the pod's %s namespace is %s, ours %s", name, lines[i], ours)
		}
	}
	name := lines[5]
	want := fmt.Sprintf(`lo
2
127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
100.64.0.1	%[1]s.pods.internal %[1]s
nameserver 169.254.1.1
search pods.internal
1
3
`, name)
	if got := strings.Join(lines[6:], "\n"); !strings.HasPrefix(name, "pod") || got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// Of the host's files a pod sees programs and public configuration, and nothing
// else.
func TestHostImageHidesTheHost(t *testing.T) {
	opts := testOptions(t)
	// podd's own directories may be where a pod could look.
	state, err := os.MkdirTemp("/var/lib", "poddtest-namespace-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(state) })
	if err := os.Chmod(state, 0o755); err != nil {
		t.Fatal(err)
	}
	opts.StateDir = filepath.Join(state, "state")
	secretDir, secretFile := filepath.Join(state, "closed"), filepath.Join(state, "secret")
	if err := os.MkdirAll(filepath.Join(secretDir, "below"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(secretFile, []byte("secret"), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "public"), []byte("public"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := openRuntime(t, opts)
	code, out, stderr := sh(t, r, `ls -A /home /root /mnt /media /srv /boot /tmp /var/tmp; test -e /work && echo work
		ls `+state+`; ls -A `+secretDir+` `+opts.StateDir+`
		cut -d: -f2 /etc/shadow | sort -u; ls /etc/ssh/ssh_host* 2>/dev/null; cat /etc/machine-id | wc -c; ls -l /etc/mtab | cut -d'>' -f2`)
	want := fmt.Sprintf("/boot:\n\n/home:\n\n/media:\n\n/mnt:\n\n/root:\n\n/srv:\n\n/tmp:\n\n/var/tmp:\nclosed\npublic\nstate\n%s:\n\n%s:\n*\n33\n ../proc/self/mounts\n", secretDir, opts.StateDir)
	if code != 0 || out != want {
		t.Errorf("got %d, %q, %q\nwant %q", code, out, stderr, want)
	}
	// Root of a pod finds nothing of the host's that is not for everyone.
	code, out, stderr = sh(t, r, `find /etc /opt /var -xdev \( -type d ! -perm -005 -o ! -type d ! -type l ! -perm -004 \) ! -path /etc/shadow ! -path /etc/gshadow -prune -exec find {} -mindepth 0 ! -type d -newermt 1970-01-02 \;`)
	if code != 0 || out != "" {
		t.Errorf("got %d, %s, %s", code, out, stderr)
	}
}

func TestDirImage(t *testing.T) {
	root := t.TempDir()
	for name, data := range map[string]string{
		"bin/init-copy": "", "etc/passwd": "app:x:77:88::/srv/app:/bin/sh\n", "etc/group": "app:x:88:\nextra:x:99:app\n",
	} {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// The only static program at hand: its usage message will do.
	program, err := os.ReadFile(initPath)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "bin/program"), program, 0o755); err != nil {
		t.Fatal(err)
	}
	opts := testOptions(t)
	opts.Images = images{"dir:" + root: {Name: "dir:" + root, Layers: []string{root}, Config: image.Config{
		Entrypoint: []string{"program"}, Cmd: []string{"default"}, User: "app", Env: []string{"PATH=/bin", "A=image"}, WorkingDir: "/etc", StopSignal: "SIGQUIT",
	}}}
	r := openRuntime(t, opts)
	config := testConfig(t)
	config.Spec.Image = "dir:" + root
	c := start(t, r, config)
	if code := wait(t, c); code != 125 {
		t.Errorf("ended with %d", code)
	}
	if _, stderr := logs(t, c); !strings.HasPrefix(stderr, "usage: podinit") {
		t.Errorf("said %q", stderr)
	}
	if c.StopSignal() != "SIGQUIT" {
		t.Errorf("stop signal %q", c.StopSignal())
	}
	user, err := c.user(c.userName(""))
	if err != nil || user.Uid != 77 || user.Gid != 88 || len(user.Sgids) != 1 || user.Sgids[0] != 99 || user.Home != "/srv/app" {
		t.Errorf("user %+v, %v", user, err)
	}
	if exists(filepath.Join(root, ".podd")) {
		t.Error("the image was written to")
	}
}

func TestInitReapsAndForwards(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	// Orphans become the init's, which reaps them: none stays as a zombie.
	code, out, stderr := sh(t, r, `for i in 1 2 3 4 5; do sh -c "sleep 0.01 & exit"; done
		while pgrep -P 1 sleep >/dev/null; do :; done; ps -o stat= --ppid 1 | grep -c Z`)
	if out != "0\n" {
		t.Errorf("got %d, %q zombies, %q", code, out, stderr)
	}

	config := testConfig(t, "sh", "-c", `for s in HUP INT USR1 USR2 QUIT WINCH; do trap "echo $s" $s; done; trap "exit 12" TERM; echo ready; while :; do sleep 1000 & wait $!; done`)
	config.Spec.User = "1000"
	c := start(t, r, config)
	want := "ready\n"
	said := func() bool { out, _ := logs(t, c); return out == want }
	eventually(t, "the command is ready", said)
	for _, s := range []struct {
		signal unix.Signal
		name   string
	}{{unix.SIGHUP, "HUP"}, {unix.SIGINT, "INT"}, {unix.SIGUSR1, "USR1"}, {unix.SIGUSR2, "USR2"}, {unix.SIGQUIT, "QUIT"}, {unix.SIGWINCH, "WINCH"}} {
		if err := c.Signal(s.signal); err != nil {
			t.Fatal(err)
		}
		want += s.name + "\n"
		eventually(t, "the command has got SIG"+s.name, said)
	}
	if err := c.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := wait(t, c); code != 12 {
		t.Errorf("ended with %d", code)
	}
	if err := c.Signal(unix.SIGTERM); !errors.Is(err, pod.ErrPhase) {
		t.Errorf("signalling a pod that has ended: %v", err)
	}
	config = testConfig(t, "sleep", "1000")
	config.Spec.Name = "bob"
	c = start(t, r, config)
	if err := c.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := wait(t, c); code != ExitKilled {
		t.Errorf("a killed pod ended with %d", code)
	}
}

func TestLimits(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	code, out, stderr := sh(t, r, `head -c 100M /dev/zero | tail -c 90M | wc -c`, func(c *Config) { c.Spec.MemoryBytes = 32 << 20 })
	if out == "94371840\n" {
		t.Errorf("a memory limit of 32 MiB did nothing: %d, %q, %q", code, out, stderr)
	}
	// What is written to /tmp is memory of the pod.
	code, out, stderr = sh(t, r, `head -c 64M /dev/zero >/tmp/file && echo written`, func(c *Config) { c.Spec.MemoryBytes = 32 << 20 })
	if code == 0 || out != "" {
		t.Errorf("got %d, %q, %q", code, out, stderr)
	}
	code, out, stderr = sh(t, r, `for i in 1 2 3 4 5 6 7 8 9 10; do sleep 1000 & done; echo all`, func(c *Config) { c.Spec.PIDs = 8 })
	if code == 0 || out != "" || !strings.Contains(stderr, "fork") {
		t.Errorf("a limit of 8 processes did nothing: %d, %q, %q", code, out, stderr)
	}
	config := testConfig(t, "sleep", "1000")
	config.Spec.MilliCPUs, config.Spec.MemoryBytes = 250, 64<<20
	c := start(t, r, config)
	m, err := c.cgroup()
	if err != nil {
		t.Fatal(err)
	}
	stats, err := m.GetStats()
	if err != nil {
		t.Fatal(err)
	}
	if limit := stats.MemoryStats.Usage.Limit; limit != 64<<20 {
		t.Errorf("memory limit %d", limit)
	}
	quota, err := readCPULimit(c)
	if err != nil || quota != "25000" {
		t.Errorf("CPU quota %q, %v", quota, err)
	}
}

// readCPULimit returns the quota in microseconds of a period of 100 ms.
func readCPULimit(c *Container) (string, error) {
	for _, name := range []string{"cpu/" + c.paths.cgroup + "/cpu.cfs_quota_us", c.paths.cgroup + "/cpu.max"} {
		data, err := os.ReadFile(filepath.Join(cgroupRoot, name))
		if err == nil {
			return strings.Fields(string(data))[0], nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
	}
	return "", os.ErrNotExist
}

// A frozen pod can be destroyed, though a signal alone does not end it.
func TestDestroyFrozen(t *testing.T) {
	r := openRuntime(t, testOptions(t))
	c := start(t, r, testConfig(t, "sleep", "1000"))
	m, err := c.cgroup()
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Freeze(cgroups.Frozen); err != nil {
		t.Fatal(err)
	}
	if err := c.Destroy(testContext(t)); err != nil {
		t.Fatal(err)
	}
}
