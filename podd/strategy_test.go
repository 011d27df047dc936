package podd

import (
	"errors"
	"strings"
	"testing"
	"time"

	"podd/pod"
)

func TestChooseStrategy(t *testing.T) {
	unable := errors.New("the kernel is too old")
	for name, test := range map[string]struct {
		asked  pod.Strategy
		memory int64
		unable error
		chosen pod.Strategy
		reason string
		err    error
	}{
		"as asked":         {pod.StrategyStopCopy, 1 << 30, nil, pod.StrategyStopCopy, "it was asked for", nil},
		"much":             {pod.StrategyAuto, 1 << 30, nil, "", "", nil},
		"little":           {pod.StrategyAuto, 1 << 20, nil, pod.StrategyStopCopy, "there is little memory: 1.0 MiB", nil},
		"little, as asked": {pod.StrategyPostCopy, 1 << 20, nil, "", "", nil},
		"unable":           {pod.StrategyAuto, 1 << 30, unable, pod.StrategyStopCopy, "the kernel is too old", nil},
		"unable, as asked": {pod.StrategyPreCopy, 1 << 30, unable, "", "", pod.ErrBlocked},
	} {
		chosen, reason, err := chooseStrategy(test.asked, test.memory, test.unable)
		if chosen != test.chosen || !strings.Contains(reason, test.reason) || !errors.Is(err, test.err) {
			t.Errorf("%s: got %q, %q, %v", name, chosen, reason, err)
		}
	}
}

func TestSharesMuch(t *testing.T) {
	const mib = 1 << 20
	for name, test := range map[string]struct {
		memory, shared, limit int64
		want                  bool
	}{
		"nothing":                {500 * mib, 0, 0, false},
		"little":                 {500 * mib, 50 * mib, 0, false},
		"a small part":           {2000 * mib, 200 * mib, 0, false},
		"most":                   {1000 * mib, 800 * mib, 0, true},
		"fits into the limit":    {100 * mib, 30 * mib, 512 * mib, false},
		"fills the limit":        {500 * mib, 30 * mib, 512 * mib, true},
		"its own fill the limit": {500 * mib, 0, 512 * mib, false},
	} {
		if got := sharesMuch(test.memory, test.shared, test.limit); got != test.want {
			t.Errorf("%s: got %v", name, got)
		}
	}
}

// A link of 1 GB/s, and one of 1 Gbit/s.
func fast(scanned, changed int64) pass { return passAt(scanned, changed, 1<<30) }
func slow(scanned, changed int64) pass { return passAt(scanned, changed, 120<<20) }

func passAt(scanned, changed int64, rate float64) pass {
	const reading = 4 << 30 // bytes per second
	read := transmission(scanned, reading)
	return pass{scanned: scanned, changed: changed, sent: changed, read: read, duration: read + transmission(changed, rate)}
}

func TestDecide(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	plan := func(asked pod.Strategy) memoryPlan {
		return memoryPlan{asked: asked, budget: 100 * time.Millisecond, fixed: 40 * time.Millisecond, beside: 25 * time.Millisecond}
	}
	for name, test := range map[string]struct {
		asked  pod.Strategy
		passes []pass
		want   pod.Strategy // empty: another pass
	}{
		"the first tells little":         {pod.StrategyAuto, []pass{fast(64*mib, 64*mib)}, ""},
		"but of next to nothing":         {pod.StrategyAuto, []pass{fast(mib, mib)}, pod.StrategyPreCopy},
		"idle":                           {pod.StrategyAuto, []pass{fast(64*mib, 64*mib), fast(64*mib, mib/2)}, pod.StrategyPreCopy},
		"idle, slow link":                {pod.StrategyAuto, []pass{slow(64*mib, 64*mib), slow(64*mib, mib/2)}, pod.StrategyPreCopy},
		"it shrinks":                     {pod.StrategyAuto, []pass{fast(512*mib, 512*mib), fast(512*mib, 60*mib)}, ""},
		"it shrinks no more, and fits":   {pod.StrategyAuto, []pass{fast(256*mib, 256*mib), fast(256*mib, 10*mib), fast(256*mib, 9*mib)}, pod.StrategyPreCopy},
		"it shrinks no more":             {pod.StrategyAuto, []pass{slow(256*mib, 256*mib), slow(256*mib, 50*mib), slow(256*mib, 48*mib)}, pod.StrategyPostCopy},
		"much to compare":                {pod.StrategyAuto, []pass{fast(2*gib, 2*gib), fast(2*gib, mib)}, pod.StrategyPostCopy},
		"pre-copy, whatever it takes":    {pod.StrategyPreCopy, []pass{fast(2*gib, 2*gib), fast(2*gib, mib)}, pod.StrategyPreCopy},
		"pre-copy that gets on":          {pod.StrategyPreCopy, []pass{slow(512*mib, 512*mib), slow(512*mib, 100*mib)}, ""},
		"post-copy, as little as can be": {pod.StrategyPostCopy, []pass{slow(512*mib, 512*mib), slow(512*mib, 100*mib)}, ""},
		"post-copy":                      {pod.StrategyPostCopy, []pass{slow(512*mib, 512*mib), slow(512*mib, mib)}, pod.StrategyPostCopy},
	} {
		got, err := plan(test.asked).decide(test.passes)
		if err != nil || got.chosen != test.want {
			t.Errorf("%s: got %+v, %v; want %s", name, got, err, test.want)
		}
		if test.want != "" && (got.reason == "" || got.predicted < 40*time.Millisecond) {
			t.Errorf("%s: got %+v", name, got)
		}
	}
}

// TestNeverWithoutEnd: memory that changes as it likes is not followed for ever.
func TestNeverWithoutEnd(t *testing.T) {
	p := memoryPlan{asked: pod.StrategyAuto, budget: time.Nanosecond, fixed: time.Second}
	changed := int64(1 << 40)
	var passes []pass
	for range maxPasses {
		if d, err := p.decide(append(passes, slow(1<<40, changed))); err != nil || d.chosen != "" {
			if len(passes) != maxPasses-1 {
				t.Fatalf("after %d passes: %+v, %v", len(passes)+1, d, err)
			}
			return
		}
		passes = append(passes, slow(1<<40, changed))
		changed /= 2
	}
	t.Error("it goes on and on")
}

// TestShared: memory that is shared is part of the freeze, however the rest is carried.
func TestShared(t *testing.T) {
	for size, want := range map[int64]time.Duration{
		0: 40 * time.Millisecond, 64 << 20: 40 * time.Millisecond, 256 << 20: 77 * time.Millisecond, 1 << 30: 265 * time.Millisecond,
	} {
		p := memoryPlan{asked: pod.StrategyAuto, budget: 100 * time.Millisecond, fixed: 40 * time.Millisecond, beside: 25 * time.Millisecond, shared: transmission(size, compareRate)}
		got, err := p.decide([]pass{fast(1<<20, 1<<20), fast(1<<20, 0)})
		// Post-copy would not be shorter.
		if err != nil || got.chosen != pod.StrategyPreCopy || (got.predicted-want).Abs() > 2*time.Millisecond {
			t.Errorf("%d MiB: got %+v, %v; want %s", size>>20, got, err, want)
		}
	}
}

// TestStrict: a limit that can't be kept is an error before the freeze.
func TestStrict(t *testing.T) {
	idle := []pass{fast(2<<30, 2<<30), fast(2<<30, 0)}
	for _, test := range []struct {
		asked pod.Strategy
		limit time.Duration
		want  string // empty: it fits
	}{
		{pod.StrategyAuto, 50 * time.Millisecond, ""},
		{pod.StrategyAuto, 30 * time.Millisecond, "the pod would be frozen for about 40ms by post-copy, and may be for 30ms"},
		{pod.StrategyPreCopy, 50 * time.Millisecond, "by pre-copy, and may be for 50ms"},
	} {
		p := memoryPlan{asked: test.asked, budget: test.limit, strict: true, fixed: 40 * time.Millisecond, beside: 25 * time.Millisecond}
		_, err := p.decide(idle)
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s in %s: %v", test.asked, test.limit, err)
		case test.want != "" && (!errors.Is(err, pod.ErrConflict) || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s in %s: got %v", test.asked, test.limit, err)
		}
	}
}
