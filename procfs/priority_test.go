package procfs

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestYieldSession(t *testing.T) {
	cmd := exec.Command("cat") // until its input ends
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	leader := cmd.Process.Pid
	if err := YieldSession(leader); err != nil {
		t.Error(err)
	}
	// The system call itself returns 20 minus the nice value.
	if got, err := unix.Getpriority(unix.PRIO_PROCESS, leader); err != nil || 20-got != lowPriority {
		t.Errorf("nice value %d, %v", 20-got, err)
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/autogroup", leader))
	if !errors.Is(err, fs.ErrNotExist) { // there are kernels without
		if want := fmt.Sprintf(" nice %d\n", lowPriority); err != nil || !strings.HasSuffix(string(b), want) {
			t.Errorf("the session has %q, %v", b, err)
		}
	}
	if err := errors.Join(in.Close(), cmd.Wait()); err != nil {
		t.Error(err)
	}
	if err := NiceSession(leader, 0); err == nil {
		t.Error("the session of a process that is gone was changed")
	}
}
