// Package report writes down what was measured: a table to read, JSON to
// compare with, pictures to see it. Verdicts come from bars, which are limits
// that were set before anything was measured.
package report

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"

	"podd/bench/measure"
)

// Figure says how the values of a figure are shown.
type Figure struct {
	Name string `json:"name"`
	Unit string `json:"unit"` // "ms", "us", "B", "/s", ...
	// About says what it is, in a line.
	About string `json:"about"`
	// Better is "less" or "more" where the contenders are ranked by it.
	Better string `json:"better,omitempty"`
}

// Report is what one part of the benchmark has found.
type Report struct {
	Part    string    `json:"part"`
	About   string    `json:"about"`
	Machine Machine   `json:"machine"`
	Started time.Time `json:"started"`
	Seconds float64   `json:"seconds"`
	// Settings are what the run was told, such as the number of repetitions.
	Settings map[string]string `json:"settings"`
	Figures  []Figure          `json:"figures"`
	Series   []Series          `json:"series"`
	Verdicts []Verdict         `json:"bars"`
	Failures []measure.Failure `json:"failures,omitempty"`
	// Notes are what whoever reads the figures has to know.
	Notes []string `json:"notes,omitempty"`
}

// Series is a series with its summary.
type Series struct {
	measure.Series
	Unit    string          `json:"unit"`
	Summary measure.Summary `json:"summary"`
}

// Fill takes over a record, and judges it by bars.
func (r *Report) Fill(record *measure.Record, bars []Bar) {
	r.Series = nil
	for _, s := range record.Series() {
		r.Series = append(r.Series, Series{s, r.figure(s.Figure).Unit, measure.Summarize(s.Samples)})
	}
	r.Failures = record.Failures()
	r.Verdicts = nil
	for _, b := range bars {
		r.Verdicts = append(r.Verdicts, b.judge(record))
	}
}

// figure returns what is known of a figure.
func (r *Report) figure(name string) Figure {
	for _, f := range r.Figures {
		if f.Name == name {
			return f
		}
	}
	return Figure{Name: name}
}

// series returns that of a key, or nil.
func (r *Report) series(k measure.Key) *Series {
	for i := range r.Series {
		if r.Series[i].Key == k {
			return &r.Series[i]
		}
	}
	return nil
}

// Missed counts the bars that were not reached, or not measured.
func (r *Report) Missed() int {
	missed := 0
	for _, v := range r.Verdicts {
		if !v.Pass {
			missed++
		}
	}
	return missed
}

// WriteJSON writes the report to DIR/PART.json.
func (r *Report) WriteJSON(dir string) error {
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	if err := renameio.WriteFile(filepath.Join(dir, r.Part+".json"), append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("writing the report: %w", err)
	}
	return nil
}

// Read returns the report in a file that WriteJSON wrote.
func Read(path string) (*Report, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading a report: %w", err)
	}
	r := new(Report)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	return r, nil
}
