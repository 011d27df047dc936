package procfs

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestParseStat(t *testing.T) {
	for s, want := range map[string]Stat{
		"42 (a ) b (c) R 7 42 41 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 9 10\n":      {42, "a ) b (c", 'R', 7, 41, 987654},
		"42 (a b) c) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 9 10\n":        {42, "a b) c", 'S', 7, 42, 987654},
		"1 () Z 0 0 0 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 18446744073709551615":          {1, "", 'Z', 0, 0, 1<<64 - 1},
		"42 (a\nb 1 2) I 2 0 0 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 0 9 10 11 12 13 14\n": {42, "a\nb 1 2", 'I', 2, 0, 0},
	} {
		if got, err := parseStat(s); err != nil || got != want {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
	}
	for _, bad := range []string{
		"", "42", "42 (a", "42 (a) R", "42 (a) R x", ")(", "42 (a) S 7",
		"42 (a) S x 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654",
		"42 (a) S 7 42 x 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654",
		"42 (a) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 -1",
		"x (a) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654",
	} {
		if got, err := parseStat(bad); err == nil {
			t.Errorf("%q: %+v", bad, got)
		}
	}
}

func FuzzParseStat(f *testing.F) {
	f.Add("a ) b (c", byte('R'), 7, 41, uint64(987654), "")
	f.Add("", byte('Z'), 0, 0, uint64(0), ")(")
	f.Fuzz(func(t *testing.T, program string, state byte, parent, session int, start uint64, line string) {
		if state <= ' ' || state > '~' || state == ')' {
			state = 'S'
		}
		want := Stat{42, program, state, parent, session, start}
		s := fmt.Sprintf("42 (%s) %c %d 42 %d 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 %d 9 10\n", program, state, parent, session, start)
		if got, err := parseStat(s); err != nil || got != want {
			t.Errorf("%q: %+v, %v", s, got, err)
		}
		if got, err := parseStat(line); err == nil && !strings.Contains(line, "("+got.Program+")") {
			t.Errorf("%q: %+v", line, got)
		}
	})
}

func TestReadStat(t *testing.T) {
	stat, err := ReadStat(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	session, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	if stat.PID != os.Getpid() || stat.Parent != os.Getppid() || stat.Session != session || stat.Start == 0 || stat.Ended() {
		t.Errorf("this process is %+v", stat)
	}
}

func TestEnded(t *testing.T) {
	cmd := exec.Command("true")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	var info unix.Siginfo
	if err := unix.Waitid(unix.P_PID, pid, &info, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	if stat, err := ReadStat(pid); err != nil || !stat.Ended() {
		t.Errorf("a zombie is %+v, %v", stat, err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if stat, err := ReadStat(pid); !Gone(err) {
		t.Errorf("a process that was reaped is %+v, %v", stat, err)
	}
	if pids, err := NamespacePIDs(pid); !Gone(err) {
		t.Errorf("a process that was reaped has the numbers %v, %v", pids, err)
	}
}

func TestStatus(t *testing.T) {
	pids, err := NamespacePIDs(os.Getpid())
	if err != nil || len(pids) == 0 || pids[0] != os.Getpid() {
		t.Errorf("this process has the numbers %v, %v", pids, err)
	}
	if tracer, err := StatusField(os.Getpid(), "TracerPid"); err != nil || tracer != "0" {
		t.Errorf("this process is traced by %q, %v", tracer, err)
	}
	if value, err := StatusField(os.Getpid(), "Tracer"); err == nil || Gone(err) {
		t.Errorf("a key that is not there: %q, %v", value, err)
	}
}

func TestPodProcesses(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait() // killed
	})
	// This program is in the pid namespace of whichever init.
	found, err := PodProcesses(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []int{os.Getpid(), cmd.Process.Pid} {
		if !slices.ContainsFunc(found, func(s Stat) bool { return s.PID == want }) {
			t.Errorf("%v lacks %d", found, want)
		}
	}
}

func TestDescends(t *testing.T) {
	table := map[int]Stat{}
	for pid, parent := range map[int]int{1: 0, 2: 1, 3: 2, 4: 3, 5: 1, 10: 11, 11: 10, 20: 20, 30: 31} {
		table[pid] = Stat{PID: pid, Parent: parent}
	}
	from := map[int]bool{2: true}
	for pid, want := range map[int]bool{1: false, 2: false, 3: true, 4: true, 5: false, 10: false, 20: false, 30: false, 99: false} {
		if got := descends(pid, table, from); got != want {
			t.Errorf("%d: %v", pid, got)
		}
	}
}
