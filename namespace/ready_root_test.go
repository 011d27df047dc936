//go:build root

package namespace

import (
	"context"
	"os"
	"testing"
)

// TestReadyCgroups: it changes nothing, and ends when it is told.
func TestReadyCgroups(t *testing.T) {
	before, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 3 {
		if err := ReadyCgroups(ctx); err != nil {
			t.Error(err)
		}
	}
	after, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if string(after) != string(before) {
		t.Errorf("the cgroups were\n%sand are\n%s", before, after)
	}
}
