package report

import (
	"podd/bench/measure"
)

// Bar is a limit for a median, or for a relation of two medians.
type Bar struct {
	Name string
	// Of is what is judged. With Against it is judged by the ratio of the two
	// medians, or by their difference if Minus is set.
	Of      measure.Key
	Against measure.Key
	Minus   bool
	Limit   float64
	// AtLeast makes Limit the least that passes; otherwise it is the most.
	AtLeast bool
	// Unit is that of Limit; empty for a ratio.
	Unit string
}

// Verdict is how a bar was met.
type Verdict struct {
	Name    string      `json:"name"`
	Of      measure.Key `json:"of"`
	Against measure.Key `json:"against,omitzero"`
	Limit   float64     `json:"limit"`
	AtLeast bool        `json:"atLeast,omitempty"`
	Unit    string      `json:"unit,omitempty"`
	// Value is of the medians, Interval how well it is known, Count how many
	// samples the shorter series has.
	Value    float64          `json:"value"`
	Interval measure.Interval `json:"interval"`
	Count    int              `json:"count"`
	Pass     bool             `json:"pass"`
	// Missing is true when there is nothing to judge by.
	Missing bool `json:"missing,omitempty"`
}

func (b Bar) judge(r *measure.Record) Verdict {
	v := Verdict{Name: b.Name, Of: b.Of, Against: b.Against, Limit: b.Limit, AtLeast: b.AtLeast, Unit: b.Unit}
	series := [][]float64{r.Samples(b.Of)}
	value := func(m []float64) float64 { return m[0] }
	if b.Against != (measure.Key{}) {
		series = append(series, r.Samples(b.Against))
		value = func(m []float64) float64 { return m[0] / m[1] }
		if b.Minus {
			value = func(m []float64) float64 { return m[0] - m[1] }
		}
	}
	var medians []float64
	v.Count = len(series[0])
	for _, s := range series {
		if len(s) == 0 {
			v.Missing, v.Count = true, 0
			return v
		}
		v.Count = min(v.Count, len(s))
		medians = append(medians, measure.Summarize(s).Median)
	}
	v.Value = value(medians)
	v.Interval = measure.Bootstrap(value, series...)
	v.Pass = v.Value <= v.Limit
	if v.AtLeast {
		v.Pass = v.Value >= v.Limit
	}
	return v
}
