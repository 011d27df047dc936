package podd

import (
	"testing"
	"time"
)

// TestPace learns from moves, not too much from one, and doubts what keeps moves
// from being tried.
func TestPace(t *testing.T) {
	var p pace
	idle := p.fixed(1)
	if idle != ideal(1) || p.beside(1) != idle/2 || p.fixed(100) <= idle {
		t.Errorf("at first %s, %s beside, %s with 100 processes", idle, p.beside(1), p.fixed(100))
	}
	p.learn(1, 2*idle)
	if got := p.fixed(1); got != 2*idle {
		t.Errorf("after a freeze of %s: %s", 2*idle, got)
	}
	p.learn(1, time.Hour)
	if got := p.fixed(1); got > 4*idle {
		t.Errorf("after one that took an hour: %s", got)
	}
	for range 20 {
		p.doubt()
	}
	if got := p.fixed(1); got > idle+idle/100 {
		t.Errorf("when all is doubted: %s", got)
	}
}
