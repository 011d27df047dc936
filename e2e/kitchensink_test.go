//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"podd/e2e/workload"
	"podd/lab"
	"podd/pod"
)

// sinkDir is where the kitchen sink is in a pod, sinkWork where it makes its
// files: in the pod's own layer.
const (
	sinkDir  = "/mnt/sink"
	sinkWork = "/var/lib/sink"
	sinkPort = 7000
)

// buildSink compiles the kitchen sink and returns its directory, which every
// host can see.
func buildSink(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := workload.BuildKitchenSink(bounded(t), filepath.Join(dir, "kitchensink")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// newSink makes a pod that runs the kitchen sink; args are the program's.
func newSink(t *testing.T, dir, suffix string, flags []string, args ...string) *testPod {
	t.Helper()
	flags = append(slices.Clone(flags), "-v", dir+":"+sinkDir+":share,ro", "--", sinkDir+"/kitchensink", "-d", sinkWork)
	return newPod(t, suffix, append(flags, args...)...)
}

// awaitOutput waits until a line of the pod's output begins with want.
func (p *testPod) awaitOutput(want string) {
	p.t.Helper()
	until(p.t, fmt.Sprintf("pod %s says %q", p.name, want), func() error {
		out := mustPodctl(p.t, "logs", p.name)
		if strings.HasPrefix(out, want) || strings.Contains(out, "\n"+want) {
			return nil
		}
		if phase := p.inspect().Phase; phase == pod.PhaseStopped {
			p.t.Fatalf("pod %s has ended: %s", p.name, out)
		}
		return fmt.Errorf("so far it says %q", out)
	})
}

// awaitExit waits for the end of the pod's main command and returns its exit
// code and output.
func (p *testPod) awaitExit() (code int, output string) {
	p.t.Helper()
	if _, err := fmt.Sscan(podctl(p.t, "wait", p.name).stdout, &code); err != nil {
		p.t.Fatal(err)
	}
	logs := podctl(p.t, "logs", p.name)
	return code, logs.stdout + logs.stderr
}

// requireAll checks that a kitchen sink has found every one of the states.
func requireAll(t *testing.T, output string, states []string) {
	t.Helper()
	report, err := workload.ParseSinkReport(strings.NewReader(output))
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	for name, reason := range report.Failed {
		t.Errorf("%s: %s", name, reason)
	}
	for _, name := range states {
		_, failed := report.Failed[name]
		left := strings.Contains(output, "# "+name+" is left out")
		if !failed && !left && !slices.Contains(report.OK, name) {
			t.Errorf("%s was not checked", name)
		}
	}
}

// sinkStates lists states; which is a subcommand of the kitchen sink.
func sinkStates(t *testing.T, dir, which string) []string {
	t.Helper()
	out, err := exec.Command(filepath.Join(dir, "kitchensink"), which).Output()
	if err != nil {
		t.Fatal(err)
	}
	states := strings.Fields(string(out))
	if len(states) == 0 {
		t.Fatalf("kitchensink %s names no state", which)
	}
	return states
}

// A program in every state there is goes from host to host and finds itself as
// it was; so does its peer outside.
func TestKitchenSink(t *testing.T) {
	dir := buildSink(t)
	states := sinkStates(t, dir, "list")
	for name, flags := range map[string][]string{"root": nil, "user": {"--user", "1000:1000"}} {
		t.Run(name, func(t *testing.T) {
			// A directory that the user may write to, in the pod's own layer.
			flags := append(slices.Clone(flags), "--workdir", "/tmp")
			work := sinkWork
			if name == "user" {
				work = "/var/tmp/sink"
			}
			args := append(flags, "-v", dir+":"+sinkDir+":share,ro", "--", sinkDir+"/kitchensink", "-d", work, "-p", fmt.Sprint(sinkPort), "run")
			p := newPod(t, "", args...)
			p.awaitOutput("listening")

			peerDir := t.TempDir()
			var peerOutput bytes.Buffer
			peer := theLab.CommandContext(bounded(t), lab.Client, filepath.Join(dir, "kitchensink"), "-d", peerDir, "peer", p.inspect().PublicAddress.String(), fmt.Sprint(sinkPort))
			peer.Stdout, peer.Stderr = &peerOutput, &peerOutput
			if err := peer.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- peer.Wait() }()
			reap := func() error { err := <-ended; ended <- err; return err }
			t.Cleanup(func() { peer.Process.Kill(); reap() })
			p.awaitOutput("ready")

			p.move("b")
			p.move("c")
			// Both sides check together.
			if err := os.WriteFile(filepath.Join(peerDir, "check-peer"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			letCheck(p, work)
			code, output := p.awaitExit()
			if code != 0 {
				t.Errorf("the kitchen sink's exit code is %d", code)
			}
			requireAll(t, output, states)
			if err := reap(); err != nil {
				t.Errorf("the peer: %v\n%s", err, &peerOutput)
			}
			t.Logf("%d states", strings.Count(output, "\nok "))
		})
	}
}

// impossible are states that a program in a pod can't get into: the system call
// that would do it fails, with these words.
var impossible = map[string]string{
	"io_uring":       "Function not implemented",
	"userfaultfd":    "Operation not permitted",
	"perf_event":     "Operation not permitted",
	"bpf_program":    "Operation not permitted",
	"user_namespace": "Operation not permitted",
	"mptcp":          "Protocol not available",
}

// undescribed are states that are not about a descriptor.
var undescribed = map[string]bool{"ptrace": true, "posix_queue": true}

// limits are states that are lost and that nobody can see from outside; the
// documentation has to name them.
var limits = map[string]string{
	"semaphore_undo": "SEM_UNDO",
	"unix_peer_name": "getpeername",
}

// What can't be carried is refused by name, before anything is frozen, and the
// program goes on with it.
func TestUnmovable(t *testing.T) {
	dir := buildSink(t)
	for _, state := range append(sinkStates(t, dir, "list-unmovable"), sinkStates(t, dir, "list-lost")...) {
		if limits[state] != "" {
			continue
		}
		t.Run(state, func(t *testing.T) {
			if words, ok := impossible[state]; ok {
				p := newSink(t, dir, "", nil, "only", state)
				if code, output := p.awaitExit(); code == 0 || !strings.Contains(output, words) {
					t.Errorf("exit code %d, %q; want that it fails with %q", code, output, words)
				}
				return
			}
			p := newSink(t, dir, "", nil, "only", state)
			p.awaitOutput("ready")
			before := p.inspect()
			var check struct {
				Movable  bool          `json:"movable"`
				Blockers []pod.Blocker `json:"blockers"`
			}
			dry := podctl(t, "move", "--dry-run", "-o", "json", p.name, "b")
			if dry.code != codeNotMovable {
				t.Fatalf("move --dry-run: exit code %d, want %d\n%s%s", dry.code, codeNotMovable, dry.stdout, dry.stderr)
			}
			parseJSON(t, dry.stdout, &check)
			if check.Movable || len(check.Blockers) == 0 {
				t.Errorf("the verdict is %+v", check)
			}
			var words []string
			for _, b := range check.Blockers {
				if !strings.Contains(b.String(), "kitchensink") || b.PID < 1 || b.Problem == "" || b.Remedy == "" {
					t.Errorf("blocker %+v does not say of what program, what and what to do", b)
				}
				if b.Descriptor < 0 && !undescribed[state] {
					t.Errorf("blocker %+v does not say which descriptor", b)
				}
				words = append(words, b.Problem, b.Remedy)
			}
			requireRefused(t, codeNotMovable, append([]string{"kitchensink"}, words...), "move", "--dry-run", p.name, "b")
			requireRefused(t, codeError, append([]string{"kitchensink", p.name + " goes on running on a"}, words...), "move", p.name, "b")
			t.Logf("%s", check.Blockers[0])

			var moves []moveView
			parseJSON(t, mustPodctl(t, "move", "ls", "-o", "json", p.name), &moves)
			if len(moves) > 0 {
				t.Errorf("a move was begun: %+v", moves)
			}
			if after := p.inspect(); after.Epoch != before.Epoch || after.Phase != pod.PhaseRunning {
				t.Errorf("the pod is now %+v; it was %+v", after, before)
			}
			requireTidy(t)
			letCheck(p, sinkWork)
			code, output := p.awaitExit()
			if code != 0 {
				t.Errorf("afterwards the exit code is %d", code)
			}
			requireAll(t, output, []string{state})
		})
	}
}

// letCheck makes a kitchen sink look at its state and end. It may end the pod
// before podctl has joined the command that told it so, or heard how that ended.
func letCheck(p *testPod, work string) {
	p.t.Helper()
	told := podctl(p.t, "exec", p.name, "--", "touch", work+"/check")
	over := strings.Contains(told.stderr, "not running") || strings.Contains(told.stderr, "it has ended")
	if told.code != 0 && !over {
		p.t.Fatalf("telling the kitchen sink to check: exit code %d\n%s", told.code, told.stderr)
	}
}

// What is lost without anybody being able to see it is at least documented.
func TestLimitsAreDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/limits.md")
	if err != nil {
		t.Fatal(err)
	}
	for state, word := range limits {
		if !strings.Contains(string(text), word) {
			t.Errorf("docs/limits.md does not mention %s (%s)", word, state)
		}
	}
}
