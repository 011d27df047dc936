//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"podd/lab"
	"podd/pod"
)

// checkup is what the tests need of podctl doctor -o json.
type checkup struct {
	Kind     string    `json:"kind"`
	Name     string    `json:"name"`
	Findings []finding `json:"findings"`
}

type finding struct {
	Check    string `json:"check"`
	Severity string `json:"severity"`
	Detail   string `json:"detail"`
	Remedy   string `json:"remedy"`
}

// codeUnwell is doctor's exit code when it has found an error.
const codeUnwell = 1

// examine asks the doctor, whose exit code must fit what it says.
func examine(t *testing.T, args ...string) []checkup {
	t.Helper()
	r := podctl(t, append([]string{"doctor", "-o", "json"}, args...)...)
	var checkups []checkup
	parseJSON(t, r.stdout, &checkups)
	want := 0
	for _, c := range checkups {
		for _, f := range c.Findings {
			if f.Severity == "error" {
				want = codeUnwell
			}
		}
	}
	if r.code != want {
		t.Errorf("doctor exits with %d, want %d: %s%s", r.code, want, r.stdout, r.stderr)
	}
	return checkups
}

// find is the finding of a machine's check that is not well and says so.
func find(checkups []checkup, machine, check, severity, says string) (finding, error) {
	for _, c := range checkups {
		for _, f := range c.Findings {
			if c.Name == machine && f.Check == check && f.Severity == severity && strings.Contains(f.Detail, says) {
				return f, nil
			}
		}
	}
	return finding{}, fmt.Errorf("there is no %s of %s about %q at %s: %+v", severity, check, says, machine, checkups)
}

// expectFinding waits for a finding, and checks that the remedy can be pasted.
func expectFinding(t *testing.T, args []string, machine, check, severity, says, remedy string) {
	t.Helper()
	until(t, "the doctor finds "+check, func() error {
		f, err := find(examine(t, args...), machine, check, severity, says)
		if err == nil && !strings.HasPrefix(f.Remedy, remedy) {
			err = fmt.Errorf("the remedy is %q, want %q", f.Remedy, remedy)
		}
		return err
	})
}

// The doctor finds nothing wrong with the lab, then what the test breaks.
func TestDoctor(t *testing.T) {
	all := examine(t)
	names := map[string]bool{}
	for _, c := range all {
		names[c.Kind+" "+c.Name] = true
		checks := map[string]bool{}
		for _, f := range c.Findings {
			checks[f.Check] = true
			if f.Severity == "error" {
				t.Errorf("%s %s: %+v", c.Kind, c.Name, f)
			}
		}
		want := []string{"kernel", "sysctl", "space", "memory", "directory", "mtu"}
		if c.Kind == "host" {
			want = append(want, "criu", "capabilities", "hugepages", "cgroup", "mounts", "podinit", "hosts", "proxy", "clock", "drift", "moves", "holds")
		}
		for _, check := range want {
			if !checks[check] {
				t.Errorf("%s %s: nothing is said of %s", c.Kind, c.Name, check)
			}
		}
	}
	for _, machine := range []string{"host a", "host b", "host c", "proxy proxy"} {
		if !names[machine] {
			t.Errorf("nothing is said of %s", machine)
		}
	}

	t.Run("narrow link", func(t *testing.T) {
		inNode(t, lab.Router, "ip", "link", "set", "dev", "a", "mtu", "1400")
		t.Cleanup(func() { inNode(t, lab.Router, "ip", "link", "set", "dev", "a", "mtu", "1500") })
		expectFinding(t, nil, "proxy", "mtu", "warning", "on the way to host a packets of at most 1400 bytes pass", "tracepath -n 10.10.1.2")
	})
	t.Run("forwarding off", func(t *testing.T) {
		inNode(t, lab.Proxy, "sysctl", "-q", "-w", "net.ipv4.ip_forward=0")
		f, err := find(examine(t), "proxy", "sysctl", "error", "net.ipv4.ip_forward is 0")
		if err != nil {
			t.Fatal(err)
		}
		command, _, _ := strings.Cut(f.Remedy, " && ") // the rest is for the next boot
		inNode(t, lab.Proxy, strings.Fields(command)...)
		if f, err := find(examine(t), "proxy", "sysctl", "error", "ip_forward"); err == nil {
			t.Errorf("after the remedy: %+v", f)
		}
	})
	t.Run("stray namespace", func(t *testing.T) {
		path := filepath.Join(theLab.RunDir("b"), "netns", "ghost-7")
		if err := os.WriteFile(path, nil, 0o400); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("unshare", "--net="+path, "true").CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		expectFinding(t, []string{"b"}, "b", "drift", "warning", "ghost", "journalctl -u podd")
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	})
	t.Run("CRIU gone", func(t *testing.T) {
		criu := workFile(t, "criu", "#!/bin/sh\nexec criu \"$@\"\n", 0o755)
		restartDaemon(t, "b", "--criu-path", criu)
		if _, err := find(examine(t, "b"), "b", "criu", "ok", "its own check passes"); err != nil {
			t.Error(err)
		}
		if err := os.Rename(criu, criu+"-away"); err != nil {
			t.Fatal(err)
		}
		expectFinding(t, []string{"b"}, "b", "criu", "error", "no pod can be moved from or to this host", "ls -l "+criu)
	})
	t.Run("hanging proxy", func(t *testing.T) {
		if err := theLab.Kill(lab.Proxy, unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		resume := func() {
			if err := theLab.Kill(lab.Proxy, unix.SIGCONT); err != nil {
				t.Error(err)
			}
		}
		t.Cleanup(resume)
		// It has the directory too.
		expectFinding(t, []string{"a"}, "a", "directory", "error", "can't be reached", "systemctl status podproxy")
	})
	t.Run("host down", func(t *testing.T) {
		killDaemon(t, "c")
		expectFinding(t, nil, "c", "podd", "error", "", "systemctl st")
		expectFinding(t, []string{"a"}, "a", "hosts", "warning", "host c is down", "systemctl start podd   # on c")
	})
}

// Whose packets are held is shown while they are, by every podd.
func TestHeldIsShown(t *testing.T) {
	s := newScene(t)
	s.begin("target:"+string(pod.StageRestore), "stop")
	until(t, "the hold is shown", func() error {
		wide := mustPodctl(t, "ps", "-o", "wide")
		inspected := mustPodctl(t, "inspect", s.pod.name)
		metrics := fetchMetrics(t, "a")
		header, _, _ := strings.Cut(wide, "\n")
		switch {
		case !strings.Contains(header, "HELD"):
			return fmt.Errorf("no column HELD: %s", wide)
		case !strings.Contains(inspected, "Packets held for:"):
			return fmt.Errorf("inspect shows %s", inspected)
		case !strings.Contains(metrics, "\npodd_pods_held 1\n"):
			return errors.New("the metrics of a tell of no hold")
		}
		return nil
	})
	if err := theLab.Kill("b", unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	s.await(0)
	if shown := mustPodctl(t, "inspect", s.pod.name); strings.Contains(shown, "Packets held") {
		t.Errorf("after the move inspect shows %s", shown)
	}
}

// Metrics of podd count the moves that end.
func TestMetrics(t *testing.T) {
	value := func(node, name string) (value float64) {
		t.Helper()
		for line := range strings.Lines(fetchMetrics(t, node)) {
			if n, _ := fmt.Sscanf(line, name+" %g", &value); n == 1 {
				return value
			}
		}
		t.Fatalf("%s has no metric %s", node, name)
		return 0
	}
	before := value("a", `podd_moves_total{outcome="done"}`)
	p := newShell(t, "", "sleep 1000")
	if n := value("a", `podd_pods{phase="running"}`); n < 1 {
		t.Errorf("%g pods run on a", n)
	}
	p.move("b")
	until(t, "the move is counted", func() error {
		if n := value("a", `podd_moves_total{outcome="done"}`) - before; n != 1 {
			return fmt.Errorf("%g moves were counted", n)
		}
		return nil
	})
	for _, name := range []string{`podd_move_freeze_seconds_count`, `podd_move_stage_seconds_count{stage="dump"}`, `podd_move_bytes_total{kind="memory"}`, `podd_directory_up`, `podd_directory_revision`} {
		if value("a", name) < 1 {
			t.Errorf("%s is %g", name, value("a", name))
		}
	}
}

// fetchMetrics asks the podd of a host at its socket, as root on it may.
func fetchMetrics(t *testing.T, host string) string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", theLab.Socket(host))
		},
	}}
	request, err := http.NewRequestWithContext(bounded(t), http.MethodGet, "http://podd/metrics", nil)
	if err != nil {
		t.Fatal(err)
	}
	response, err := client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("metrics of %s: %s, %v: %s", host, response.Status, err, text)
	}
	return string(text)
}
