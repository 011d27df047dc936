package procfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestCgroupProcesses(t *testing.T) {
	dir := t.TempDir()
	if _, err := CgroupProcesses(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a list: %v", err)
	}
	for text, want := range map[string][]int{"": nil, "12\n7\n0\n": {12, 7, 0}} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if pids, err := CgroupProcesses(dir); err != nil || !slices.Equal(pids, want) {
			t.Errorf("%q: %v, %v", text, pids, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("12\nx\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if pids, err := CgroupProcesses(dir); err == nil {
		t.Errorf("a malformed list is %v", pids)
	}
}
