package measure

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
)

func TestSummarize(t *testing.T) {
	for _, test := range []struct {
		samples []float64
		want    Summary
	}{
		{nil, Summary{}},
		{[]float64{7}, Summary{1, 7, 7, 7, 7, 7}},
		{[]float64{4, 1, 3, 2, 5}, Summary{5, 1, 2, 3, 4, 5}},
		{[]float64{1, 2, 3, 4}, Summary{4, 1, 1.75, 2.5, 3.25, 4}},
	} {
		if got := Summarize(test.samples); got != test.want {
			t.Errorf("Summarize(%v) = %+v, want %+v", test.samples, got, test.want)
		}
	}
}

func TestSummarizeLeavesTheOrder(t *testing.T) {
	samples := []float64{3, 1, 2}
	Summarize(samples)
	if !slices.Equal(samples, []float64{3, 1, 2}) {
		t.Errorf("the samples are %v now", samples)
	}
}

func TestBootstrap(t *testing.T) {
	ratio := func(m []float64) float64 { return m[0] / m[1] }
	same := []float64{10, 10, 10}
	if got := Bootstrap(ratio, []float64{5, 5, 5}, same); got != (Interval{0.5, 0.5}) {
		t.Errorf("of samples without spread: %v, want 0.5", got)
	}
	spread := []float64{4, 5, 6, 5, 4, 6, 5}
	got := Bootstrap(ratio, spread, same)
	if got.Low < 0.4 || got.High > 0.6 || got.Low >= 0.5 || got.High <= 0.5 {
		t.Errorf("of %v over %v: %v", spread, same, got)
	}
	if again := Bootstrap(ratio, spread, same); again != got {
		t.Errorf("the second time: %v, the first %v", again, got)
	}
}

func TestAlternate(t *testing.T) {
	var order []string
	counting := func(name string) Contender {
		n := 0.0
		return Contender{Name: name, Once: func(context.Context) (Values, error) {
			order = append(order, name)
			n++
			return Values{"n": n}, nil
		}}
	}
	var r Record
	if err := Alternate(t.Context(), &r, "count", 2, []Contender{counting("a"), counting("b")}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"a", "b", "a", "b", "a", "b"}; !slices.Equal(order, want) {
		t.Errorf("the order was %v, want %v", order, want)
	}
	for _, s := range r.Series() {
		if !slices.Equal(s.Samples, []float64{2, 3}) {
			t.Errorf("%v: %v, want those after the first round", s.Key, s.Samples)
		}
	}
}

func TestAlternateEvery(t *testing.T) {
	calls := 0
	once := func(context.Context) (Values, error) { calls++; return Values{"n": 1}, nil }
	var r Record
	if err := Alternate(t.Context(), &r, "work", 15, []Contender{{Name: "slow", Every: 3, Once: once}}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if got := r.Samples(Key{"work", "slow", "n"}); len(got) != 5 || calls != 6 {
		t.Errorf("%d samples of %d calls", len(got), calls)
	}
}

func TestAlternateCold(t *testing.T) {
	const repetitions = 3
	var r Record
	called := 0
	slow := Contender{Name: "slow", Cold: true, Once: func(context.Context) (Values, error) {
		called++
		return Values{"x": float64(called)}, nil
	}}
	if err := Alternate(t.Context(), &r, "w", repetitions, []Contender{slow}, func(string) {}); err != nil {
		t.Fatal(err)
	}
	if got := r.Samples(Key{"w", "slow", "x"}); called != repetitions || len(got) != repetitions {
		t.Errorf("called %d times, and noted %v; want each of %d", called, got, repetitions)
	}
}

func TestAlternateGivesUp(t *testing.T) {
	calls := map[string]int{}
	failing := func(name string, err error) Contender {
		return Contender{Name: name, Once: func(context.Context) (Values, error) { calls[name]++; return nil, err }}
	}
	var r Record
	err := Alternate(t.Context(), &r, "fail", 10, []Contender{
		failing("flaky", errors.New("no luck")), failing("absent", fmt.Errorf("%w: no such program", ErrImpossible)),
	}, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	if calls["flaky"] != maxFailures || calls["absent"] != 1 {
		t.Errorf("calls: %v", calls)
	}
	final := 0
	for _, f := range r.Failures() {
		if f.Final {
			final++
		}
	}
	if final != 2 {
		t.Errorf("failures: %+v", r.Failures())
	}
}

func TestAlternateEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var r Record
	err := Alternate(ctx, &r, "work", 10, []Contender{{Name: "a", Once: func(context.Context) (Values, error) {
		cancel()
		return nil, errors.New("interrupted")
	}}}, func(string) {})
	if !errors.Is(err, context.Canceled) || len(r.Failures()) != 0 {
		t.Errorf("%v, %v", err, r.Failures())
	}
}
