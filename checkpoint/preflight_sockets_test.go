package checkpoint

import "testing"

// TestAccepts tells a program that is slow from one that is stuck.
func TestAccepts(t *testing.T) {
	for name, test := range map[string]struct {
		looks []uint32
		want  bool
	}{
		"stuck":                 {[]uint32{3, 3, 3}, false},
		"stuck and more come":   {[]uint32{3, 4, 9}, false},
		"accepts":               {[]uint32{3, 2}, true},
		"accepts and more come": {[]uint32{3, 2, 8}, true},
	} {
		s := survey{waiting: make(map[[2]int]listener)}
		var got bool
		for i, n := range test.looks {
			// The process may be in another state each time.
			got = s.accepts(descriptor{process{pid: 7, state: "SR"[i%2]}, 5}, n)
			s.accepts(descriptor{process{pid: 7}, 6}, 1)
		}
		if got != test.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}
