//go:build root

package checkpoint

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"podd/procfs"
)

// A pod that is frozen is on one processor, and one that runs again has as many
// as before.
func TestGatherProcesses(t *testing.T) {
	for version, root := range cgroupRoots(t) {
		t.Run(version, func(t *testing.T) {
			dir := filepath.Join(root, fmt.Sprintf("poddtest-checkpoint-%d-gather", os.Getpid()))
			sets := cpusetOf(dir, version == "v1").dir
			for _, d := range []string{dir, sets} {
				if err := os.Mkdir(d, 0o755); err != nil && !os.IsExist(err) {
					t.Fatal(err)
				}
			}
			cmd := exec.Command("sleep", "1000")
			must(t, cmd.Start())
			t.Cleanup(func() {
				cmd.Process.Kill()
				cmd.Wait() // it was killed
				for _, d := range []string{dir, sets} {
					eventually(t, "removing "+d, func() bool { err := os.Remove(d); return err == nil || os.IsNotExist(err) })
				}
			})
			hasSets := version == "v1"
			if hasSets {
				for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
					b, err := os.ReadFile(filepath.Join(filepath.Dir(sets), file))
					must(t, err)
					must(t, os.WriteFile(filepath.Join(sets, file), b, 0))
				}
			} else if _, err := os.Stat(filepath.Join(sets, "cpuset.cpus")); err == nil {
				hasSets = true
			}
			for _, d := range []string{dir, sets} {
				must(t, os.WriteFile(filepath.Join(d, "cgroup.procs"), fmt.Append(nil, cmd.Process.Pid), 0))
			}
			f, err := NewFreezer(dir)
			must(t, err)
			before := processorsOf(t, cmd)
			for range 2 { // freezing what is frozen changes nothing
				must(t, f.Freeze(t.Context()))
				if got := processorsOf(t, cmd); hasSets && runtime.NumCPU() > 1 && strings.ContainsAny(got, ",-") {
					t.Errorf("the frozen process is on processors %s", got)
				}
			}
			must(t, f.Thaw())
			if got := processorsOf(t, cmd); got != before {
				t.Errorf("the process is on processors %s, before it was on %s", got, before)
			}
		})
	}
}

func processorsOf(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	list, err := procfs.StatusField(cmd.Process.Pid, "Cpus_allowed_list")
	must(t, err)
	return list
}
