package measure

import "sync"

// Key names a series: what was done, by whom, and what was measured of it.
type Key struct {
	Work      string `json:"work"`      // "64 MiB idle"
	Contender string `json:"contender"` // "podd"
	Figure    string `json:"figure"`    // "silence"
}

// Series is the samples of one key, in the order they were taken.
type Series struct {
	Key
	Samples []float64 `json:"samples"`
}

// Failure is one repetition that gave no figures, or, when Final, a contender
// that has none because of it.
type Failure struct {
	Work      string `json:"work"`
	Contender string `json:"contender"`
	Reason    string `json:"reason"`
	Final     bool   `json:"final,omitempty"`
}

// Record keeps what was measured. Its zero value is empty, and it is safe for
// concurrent use.
type Record struct {
	mu       sync.Mutex
	order    []Key
	samples  map[Key][]float64
	failures []Failure
}

// Add appends a sample.
func (r *Record) Add(k Key, value float64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.samples == nil {
		r.samples = map[Key][]float64{}
	}
	if _, known := r.samples[k]; !known {
		r.order = append(r.order, k)
	}
	r.samples[k] = append(r.samples[k], value)
}

// Fail notes why there is no sample.
func (r *Record) Fail(f Failure) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failures = append(r.failures, f)
}

// Samples returns those of a key; they are the caller's.
func (r *Record) Samples(k Key) []float64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]float64(nil), r.samples[k]...)
}

// Series returns all series in the order of their first samples.
func (r *Record) Series() []Series {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []Series
	for _, k := range r.order {
		all = append(all, Series{k, append([]float64(nil), r.samples[k]...)})
	}
	return all
}

// Failures returns what was noted by Fail, in that order.
func (r *Record) Failures() []Failure {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Failure(nil), r.failures...)
}
