//go:build root

package checkpoint

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// A CRIU that somebody else has started is found by its network namespace, and
// not mistaken for our own or for a pod's program of that name.
func TestStrays(t *testing.T) {
	// Any program called so, which lives as long as its standard input.
	criu := filepath.Join(t.TempDir(), "criu")
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(cat)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(criu, data, 0o700); err != nil {
		t.Fatal(err)
	}
	// start runs a shell that runs the program in a new network namespace, and
	// returns the program's.
	start := func(argv ...string) (netNS string) {
		t.Helper()
		cmd := exec.Command(argv[0], argv[1:]...)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { in.Close(); cmd.Wait() })
		// The program repeats what it is told, so it runs now.
		if _, err := io.WriteString(in, "x"); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid)
	}
	stray := start("unshare", "--net", "sh", "-c", criu+"; :")
	own := start("unshare", "--net", criu)
	pods := start("unshare", "--net", "--pid", "--fork", "sh", "-c", criu+"; :")
	find := func() map[string][]int {
		t.Helper()
		found, err := Strays(stray, own, pods, "/no/such/namespace")
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	found := find()
	if len(found) != 1 || len(found[stray]) != 1 {
		t.Fatalf("found %v, want one process for %s", found, stray)
	}
	if err := KillStray(os.Getpid()); err != nil {
		t.Errorf("what is no CRIU: %v", err)
	}
	if err := KillStray(found[stray][0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is dead", func() bool { return len(find()) == 0 })
	if err := KillStray(found[stray][0]); err != nil {
		t.Errorf("what has ended: %v", err)
	}
}
