package podd

import (
	"sync"
	"time"
)

// pace predicts how long a freeze takes apart from memory that podd carries
// itself. It begins with what an idle machine takes and learns from every move. The
// zero value is ready.
type pace struct {
	mu sync.Mutex
	// scale is how much longer freezes took lately than on that machine; 0 means
	// that there was none.
	scale float64
}

const (
	// freezeBase and freezeEach are what a freeze takes with one process, and for
	// each.
	freezeBase = 35 * time.Millisecond
	freezeEach = 2 * time.Millisecond
	// learning is the weight of the newest move.
	learning = 0.5
)

func (p *pace) fixed(processes int) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	scale := p.scale
	if scale == 0 {
		scale = 1
	}
	return time.Duration(scale * float64(ideal(processes)))
}

// beside is for how much of that memory can be compared as well: CRIU's dump, and
// sending what it wrote.
func (p *pace) beside(processes int) time.Duration { return p.fixed(processes) / 2 }

// learn takes in how long the freeze of a move took apart from such memory.
func (p *pace) learn(processes int, took time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	// One move that met a busy machine, or a fault, must not decide for long.
	scale := min(max(float64(took)/float64(ideal(processes)), 0.2), 5)
	if p.scale == 0 {
		p.scale = scale
	}
	p.scale += learning * (scale - p.scale)
}

// doubt moves back towards an idle machine, since a move that was refused for what
// was learned teaches nothing: one that is asked for again is tried at last.
func (p *pace) doubt() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.scale > 1 {
		p.scale += learning * (1 - p.scale)
	}
}

func ideal(processes int) time.Duration {
	return freezeBase + time.Duration(processes)*freezeEach
}
