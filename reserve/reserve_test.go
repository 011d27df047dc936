package reserve

import (
	"errors"
	"os"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, dir := range []string{t.TempDir(), "/dev/shm"} {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := Check(int(f.Fd())); err != nil {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := check("disk", Bytes-1); !errors.Is(err, ErrFull) {
		t.Errorf("got %v", err)
	}
	if err := check("disk", Bytes); err != nil {
		t.Error(err)
	}
}

// A meter looks only now and then.
func TestMeter(t *testing.T) {
	var m Meter
	for range 10 {
		if err := m.Add(-1, 1, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Add(-1, stepBytes, 0); err == nil {
		t.Error("after many bytes it does not look")
	}
	if err := m.Add(-1, 0, stepFiles); err == nil {
		t.Error("after many files it does not look")
	}
}
