package checkpoint

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestParseProcessors(t *testing.T) {
	for list, want := range map[string][]int{
		"0": {0}, "0-3": {0, 1, 2, 3}, "0-1,4,6-7": {0, 1, 4, 6, 7},
		"": nil, "3-1": nil, "a": nil, "0-": nil, "-1": nil, "0-4096": nil,
	} {
		got, err := parseProcessors(list)
		if !slices.Equal(got, want) || (err == nil) != (want != nil) {
			t.Errorf("%q: got %v, %v; want %v", list, got, err, want)
		}
	}
}

// The files are those of cgroups of both versions.
func TestGather(t *testing.T) {
	for name, version := range map[string]struct {
		freezer, parent, inherited string
		v1                         bool
	}{
		"v1": {"freezer/pods/alice", "cpuset/pods", "0-3", true},
		"v2": {"pods/alice", "pods", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			c := cpusetOf(filepath.Join(root, version.freezer), version.v1)
			if err := c.gather(nil); err != nil {
				t.Errorf("without cpusets: %v", err)
			}
			if err := os.MkdirAll(c.dir, 0o700); err != nil {
				t.Fatal(err)
			}
			put := func(name, content string) {
				t.Helper()
				if err := os.WriteFile(filepath.Join(root, name), []byte(content+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			own := filepath.Join(version.parent, "alice")
			put(filepath.Join(own, "cpuset.cpus.effective"), "0-3")
			put(filepath.Join(own, "cpuset.effective_cpus"), "0-3")
			put(filepath.Join(version.parent, "cpuset.cpus"), version.inherited)
			for before, gathers := range map[string]bool{version.inherited: true, "1-2": false} {
				put(filepath.Join(own, "cpuset.cpus"), before)
				if err := c.gather(nil); err != nil {
					t.Fatal(err)
				}
				gathered, err := c.read(c.dir, "cpuset.cpus")
				if processors, _ := parseProcessors(gathered); err != nil || (len(processors) == 1) != gathers {
					t.Errorf("%q became %q", before, gathered)
				}
				if err := c.spread(); err != nil {
					t.Fatal(err)
				}
				if after, err := c.read(c.dir, "cpuset.cpus"); err != nil || after != before {
					t.Errorf("%q became %q in the end", before, after)
				}
			}
		})
	}
}
