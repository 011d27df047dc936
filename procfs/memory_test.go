package procfs

import "testing"

func TestMemory(t *testing.T) {
	total, available, err := Memory()
	if err != nil || available <= 0 || total < available {
		t.Errorf("%d of %d bytes, %v", available, total, err)
	}
}
