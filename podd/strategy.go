package podd

import (
	"fmt"
	"time"

	"podd/pod"
)

const (
	// defaultBudget is how long a pod may be frozen for if nobody says so: what
	// people still take for at once.
	defaultBudget = 100 * time.Millisecond
	// maxPasses bounds how often memory is compared while the pod runs.
	maxPasses = 8
	// littleMemory, in bytes, is carried by CRIU as fast as by podd; fewBytes
	// that change in a pass make another one pointless.
	littleMemory = 4 << 20
	// muchShared, in bytes, is more than a host should have to find for a pod that
	// came with less.
	muchShared = 128 << 20
	fewBytes   = 1 << 20
	// shrinking is by what factor less must have changed in a pass than in the one
	// before for another one to be worth it.
	shrinking = 0.7
	// enoughTime is how long a pass may take that is not needed.
	enoughTime = time.Second
	// settling is about how long it takes from the last pass to the freeze.
	settling = 20 * time.Millisecond
	// compareRate is how much shared memory is compared in a second, in bytes.
	compareRate = 4 << 30
	// unknownRate is what a link is taken to carry in a second, in bytes, until
	// it has carried enough to tell.
	unknownRate = 100 << 20
)

// chooseStrategy decides how the memory of a pod is carried, before anything is
// known of the pod but how much it has. unable is why one of the hosts can't have
// podd carry it itself. An empty choice is that podd carries it, and decides when
// it has seen the memory. The error wraps pod.ErrBlocked if what was asked for is not
// to be had.
func chooseStrategy(asked pod.Strategy, memory int64, unable error) (chosen pod.Strategy, reason string, err error) {
	switch {
	case asked == pod.StrategyStopCopy, asked == pod.StrategyCheckpointServer:
		return asked, askedFor, nil
	case unable != nil && asked == pod.StrategyAuto:
		return pod.StrategyStopCopy, "memory can be carried by CRIU only: " + unable.Error(), nil
	case unable != nil:
		return "", "", fmt.Errorf("%w: strategy %s: %w", pod.ErrBlocked, asked, unable)
	case asked == pod.StrategyAuto && memory < littleMemory:
		return pod.StrategyStopCopy, fmt.Sprintf("there is little memory: %s", mebibytes(memory)), nil
	}
	return "", "", nil
}

// sharesMuch reports whether a pod takes much more memory, in bytes, or more than
// its limit (0 is none), when its processes have pages of their own that they
// shared since a fork. That is what becomes of memory that podd carries.
func sharesMuch(memory, shared, limit int64) bool {
	if limit > 0 && shared > 0 && memory > limit/4*3 {
		return true
	}
	return shared > muchShared && shared > memory/3
}

// askedFor is the reason for what was not podd's choice.
const askedFor = "it was asked for"

// pass is what one pass over the memory has found: how much memory there is and
// how much of it was new or had changed, in bytes, how many bytes that took on
// the wire, and how long it took, and reading and comparing alone.
type pass struct {
	scanned, changed, sent int64
	duration, read         time.Duration
}

// memoryPlan is what is wanted of the move of memory that podd carries itself.
type memoryPlan struct {
	asked pod.Strategy
	// budget is how long the pod may be frozen; strict says that somebody wants
	// no move rather than a longer freeze.
	budget time.Duration
	strict bool
	// fixed is how long the freeze takes apart from this memory, and beside how
	// much of that time goes by while the memory can be compared as well.
	fixed, beside time.Duration
	// shared is how long it takes to compare the memory that processes share, which
	// is part of the freeze in any strategy.
	shared time.Duration
}

// decision is what to do after a pass: another one, or to freeze the pod and
// carry the rest by the strategy chosen.
type decision struct {
	chosen pod.Strategy // empty: another pass
	reason string
	// predicted is how long the freeze will be.
	predicted time.Duration
}

// decide looks at the passes so far, at least one. The error wraps pod.ErrConflict
// if the pod would be frozen for longer than it may.
func (p memoryPlan) decide(passes []pass) (decision, error) {
	n := len(passes)
	last := passes[n-1]
	pre := p.fixed + max(0, p.shared+last.read+transmission(expected(passes), linkRate(passes))-p.beside)
	post := p.fixed + max(0, p.shared-p.beside)
	// What can't be much shorter by post-copy needs no source afterwards.
	fits := pre <= max(p.budget, post+post/10)
	converged := last.changed <= fewBytes || n >= maxPasses ||
		n > 1 && float64(last.changed) > shrinking*float64(passes[n-2].changed)
	if !converged && !(fits && n > 1 && last.duration > enoughTime) {
		return decision{}, nil
	}
	facts := fmt.Sprintf("of %s, %s changed in the last pass of %s", mebibytes(last.scanned), mebibytes(last.changed), last.duration.Round(time.Millisecond))
	switch {
	case p.asked == pod.StrategyPreCopy:
		return p.settle(pod.StrategyPreCopy, askedFor+"; "+facts, pre)
	case p.asked == pod.StrategyPostCopy:
		return p.settle(pod.StrategyPostCopy, askedFor+"; "+facts, post)
	case fits:
		return p.settle(pod.StrategyPreCopy, facts+": the rest fits into the freeze", pre)
	}
	return p.settle(pod.StrategyPostCopy, fmt.Sprintf("%s: pre-copy would freeze the pod for %s", facts, pre.Round(time.Millisecond)), post)
}

// settle chooses, unless that takes longer than it may.
func (p memoryPlan) settle(chosen pod.Strategy, reason string, predicted time.Duration) (decision, error) {
	if p.strict && predicted > p.budget {
		return decision{}, fmt.Errorf("%w: the pod would be frozen for about %s by %s, and may be for %s: %s",
			pod.ErrConflict, predicted.Round(time.Millisecond), chosen, p.budget, reason)
	}
	return decision{chosen, reason, predicted}, nil
}

// expected is how much memory will have changed by the freeze since it was last
// sent, in bytes. After the first pass nothing tells, so it may be everything.
func expected(passes []pass) int64 {
	n := len(passes)
	last := passes[n-1]
	if n == 1 {
		return last.scanned
	}
	// A page is read in the middle of a pass, on the average.
	apart := (passes[n-2].duration + last.duration) / 2
	if apart <= 0 {
		return last.changed
	}
	until := last.duration/2 + settling
	return min(last.scanned, int64(float64(last.changed)*until.Seconds()/apart.Seconds()))
}

// linkRate is how many bytes the link carries in a second, as far as passes tell.
func linkRate(passes []pass) float64 {
	rate := 0.
	for _, p := range passes {
		if busy := p.duration - p.read; p.sent >= fewBytes && p.duration > 0 {
			// What reading took went by beside sending, in part.
			rate = max(rate, float64(p.sent)/max(busy, p.duration/2).Seconds())
		}
	}
	if rate == 0 {
		return unknownRate
	}
	return rate
}

func transmission(bytes int64, rate float64) time.Duration {
	return time.Duration(float64(bytes) / rate * float64(time.Second))
}

// mebibytes is a size for people.
func mebibytes(n int64) string {
	if n < 10<<20 {
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d MiB", n>>20)
}
