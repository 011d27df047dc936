package namespace

import (
	"os"
	"path/filepath"
	"testing"
)

// TestCoverVanished hides files whose directory the host has deleted since it
// was looked for: there is nothing to hide, and nothing new for the pod to see.
func TestCoverVanished(t *testing.T) {
	dir := t.TempDir()
	upper, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer upper.Close()
	for _, h := range []hidden{{path: "vanished/file"}, {path: "vanished/a/dir", dir: true, mode: 0o700}} {
		if err := h.cover(upper); err != nil {
			t.Errorf("%s: %v", h.path, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "vanished")); !os.IsNotExist(err) {
		t.Errorf("the upper layer has the directory: %v", err)
	}
}
