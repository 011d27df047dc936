//go:build !faults

package fault

import (
	"go/build"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// A build without the tag has nothing that could fail.
func TestNormalBuild(t *testing.T) {
	p, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"doc.go", "off.go"}; !slices.Equal(p.GoFiles, want) {
		t.Errorf("the package is made of %v, want %v", p.GoFiles, want)
	}
	dir := t.TempDir()
	path, text := filepath.Join(dir, "faults"), "target:restore error\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	Watch(dir)
	if err := At("target:restore", nil); err != nil {
		t.Error(err)
	}
	if data, err := os.ReadFile(path); err != nil || string(data) != text {
		t.Errorf("the file of faults is now %q, %v", data, err)
	}
}
