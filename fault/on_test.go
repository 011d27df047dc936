//go:build faults

package fault

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

type closer struct{ closed bool }

func (c *closer) Close() error { c.closed = true; return nil }

func TestOnce(t *testing.T) {
	dir := t.TempDir()
	Watch(dir)
	if err := At("source:dump", nil); err != nil {
		t.Errorf("without a file: %v", err)
	}
	path := filepath.Join(dir, "faults")
	text := "source:dump full\nsource:hold error\nsource:dump sever\nsource:hold explode\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := At("source:presync", nil); err != nil {
		t.Errorf("another point: %v", err)
	}
	if err := At("source:dump", nil); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("full: %v", err)
	}
	c := &closer{}
	if err := At("source:dump", c); err != nil || !c.closed {
		t.Errorf("sever: %v, closed %v", err, c.closed)
	}
	if err := At("source:dump", nil); err != nil {
		t.Errorf("when all is done: %v", err)
	}
	for range 2 { // a fault, and a mistake in the file
		if err := At("source:hold", nil); err == nil {
			t.Error("no error")
		}
	}
	if data, err := os.ReadFile(path); err != nil || len(data) > 0 {
		t.Errorf("left of the file: %q, %v", data, err)
	}
}
