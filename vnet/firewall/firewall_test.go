package firewall

import (
	"slices"
	"testing"
)

func TestFind(t *testing.T) {
	lines := []string{
		"-P PREROUTING ACCEPT",
		"-A PREROUTING -j OTHER",
		`-A PREROUTING -p udp -m comment --comment "podproxy" -j DROP`,
		"-A PREROUTING -p udp -m comment --comment podproxy -j CT --notrack",
		`-A PREROUTING -m comment --comment "podproxy too" -j DROP`,
		"-A PREROUTING -m comment --comment",
		"",
	}
	if got, want := Owner("podproxy").find(lines), []int{2, 3}; !slices.Equal(got, want) {
		t.Errorf("found rules %v, want %v", got, want)
	}
}
