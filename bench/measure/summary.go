package measure

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Summary describes samples: how many, and their quartiles.
type Summary struct {
	N      int     `json:"n"`
	Min    float64 `json:"min"`
	Q1     float64 `json:"q1"`
	Median float64 `json:"median"`
	Q3     float64 `json:"q3"`
	Max    float64 `json:"max"`
}

// Summarize returns the summary of samples, which it leaves as they are. That
// of none is all zero.
func Summarize(samples []float64) Summary {
	if len(samples) == 0 {
		return Summary{}
	}
	s := slices.Sorted(slices.Values(samples))
	return Summary{
		N: len(s), Min: s[0], Q1: quantile(s, 0.25), Median: quantile(s, 0.5), Q3: quantile(s, 0.75), Max: s[len(s)-1],
	}
}

// quantile interpolates linearly between the samples next to q (Hyndman and
// Fan's type 7, the usual one). sorted has at least one.
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	low := int(math.Floor(at))
	if low+1 == len(sorted) {
		return sorted[low]
	}
	return sorted[low] + (at-float64(low))*(sorted[low+1]-sorted[low])
}

// Interval is where a value lies with a probability of 95 %.
type Interval struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// Bootstrap estimates how well f of the medians of samples is known, by
// drawing from the samples again and again (Efron's percentile method). What it
// returns depends on nothing but its arguments. No series may be empty.
func Bootstrap(f func(medians []float64) float64, series ...[]float64) Interval {
	const draws = 2000
	random := rand.New(rand.NewPCG(1, 2))
	medians := make([]float64, len(series))
	values := make([]float64, draws)
	var drawn []float64
	for i := range values {
		for j, samples := range series {
			drawn = drawn[:0]
			for range samples {
				drawn = append(drawn, samples[random.IntN(len(samples))])
			}
			slices.Sort(drawn)
			medians[j] = quantile(drawn, 0.5)
		}
		values[i] = f(medians)
	}
	slices.Sort(values)
	return Interval{quantile(values, 0.025), quantile(values, 0.975)}
}
