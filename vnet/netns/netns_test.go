package netns

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestOpenNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "alice-1")
	if _, err := Open(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want %v", err, fs.ErrNotExist)
	}
	if err := os.WriteFile(path, nil, 0o400); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(path); !errors.Is(err, ErrNotNamespace) {
		t.Errorf("got %v, want %v", err, ErrNotNamespace)
	}
	if err := Do(path, func() error { return nil }); !errors.Is(err, ErrNotNamespace) {
		t.Errorf("got %v, want %v", err, ErrNotNamespace)
	}
}

func TestSysctls(t *testing.T) {
	if _, err := GetSysctl("net/podd/missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want %v", err, fs.ErrNotExist)
	}
	if err := SetSysctls(Sysctl{Name: "net/podd/missing", Value: "1", Optional: true}); err != nil {
		t.Errorf("an optional parameter that is missing: %v", err)
	}
	if err := SetSysctls(Sysctl{Name: "net/podd/missing", Value: "1"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v, want %v", err, fs.ErrNotExist)
	}
	// What has the value is not written, so this needs no privilege.
	now, err := GetSysctl("net/ipv4/ip_forward")
	if err != nil {
		t.Fatal(err)
	}
	if err := SetSysctls(Sysctl{Name: "net/ipv4/ip_forward", Value: now}); err != nil {
		t.Error(err)
	}
}
