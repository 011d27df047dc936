//go:build root

package checkpoint

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"podd/procfs"
)

// spawner waits in vfork(2) for a child that does not execute anything.
const spawner = `#include <unistd.h>
int main(void) { if (vfork() == 0) for (;;) pause(); return 0; }
`

func TestSpawning(t *testing.T) {
	dir := t.TempDir()
	source, program := filepath.Join(dir, "spawner.c"), filepath.Join(dir, "spawner")
	must(t, os.WriteFile(source, []byte(spawner), 0o600))
	run(t, "cc", "-o", program, source)
	start := func(name string, args ...string) int {
		cmd := exec.Command(name, args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		must(t, cmd.Start())
		t.Cleanup(func() {
			syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			cmd.Wait()
		})
		return cmd.Process.Pid
	}
	others := []int{start("sleep", "1000"), start("true"), start("sleep", "1000"), start("true"), start("sleep", "1000")}
	for _, dead := range []int{others[1], others[3]} {
		eventually(t, "it ends", func() bool {
			stat, err := procfs.ReadStat(dead)
			return err == nil && stat.State == 'Z'
		})
	}
	parent := start(program)
	child := 0
	eventually(t, "it spawns", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", parent))
		must(t, err)
		_, err = fmt.Sscan(string(b), &child)
		return err == nil
	})
	for _, c := range []struct {
		pids []int
		want int
	}{
		{others, 0},
		{append([]int{parent}, others...), 0},
		{append([]int{child, os.Getpid()}, others...), 0},
		{append(append([]int{child}, others...), parent), child},
		{nil, 0},
	} {
		must(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strings.Trim(fmt.Sprint(c.pids), "[]")), 0o600))
		if got, err := spawning(dir); err != nil || got != c.want {
			t.Errorf("of %v process %d is being started (%v), want %d", c.pids, got, err, c.want)
		}
	}
}
