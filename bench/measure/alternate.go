package measure

import (
	"context"
	"errors"
	"fmt"
)

// Values are the figures of one repetition, by name.
type Values map[string]float64

// Contender is one way of doing a work.
type Contender struct {
	Name string
	// Work is what its figures are noted under where it does not do the same
	// work as the others, such as a larger one.
	Work string
	// Every, if it is above 1, has it do the work only in every such round:
	// what is slow and is no part of a verdict.
	Every int
	// Cold has it sit out the round that warms things up: what takes long is not
	// done once more for that.
	Cold bool
	// Once does the work once and returns what it measured. It leaves things
	// so that it can be called again, also after an error.
	Once func(ctx context.Context) (Values, error)
}

// ErrImpossible means that a contender can't do a work on this machine: it is
// not asked again.
var ErrImpossible = errors.New("not possible here")

// maxFailures is how many repetitions of a contender may fail in a row before
// it is given up for the work.
const maxFailures = 3

// Alternate does a work so many times by each contender, in turns: what
// disturbs the machine for a while disturbs all of them. The first round warms
// things up and is not recorded; those that are Cold sit it out. Failures are
// recorded; the error is only that ctx has ended.
func Alternate(ctx context.Context, r *Record, work string, repetitions int, contenders []Contender, progress func(string)) error {
	failures := make([]int, len(contenders))
	for round := range repetitions + 1 {
		for i, c := range contenders {
			if failures[i] >= maxFailures || c.Every > 1 && round%c.Every != 0 || c.Cold && round == 0 {
				continue
			}
			work := work
			if c.Work != "" {
				work = c.Work
			}
			values, err := c.Once(ctx)
			if ctx.Err() != nil {
				return fmt.Errorf("measuring %s by %s: %w", work, c.Name, context.Cause(ctx))
			}
			if err != nil {
				failures[i]++
				if errors.Is(err, ErrImpossible) {
					failures[i] = maxFailures
				}
				r.Fail(Failure{Work: work, Contender: c.Name, Reason: err.Error(), Final: failures[i] >= maxFailures})
				progress(fmt.Sprintf("%s, %s: %v", work, c.Name, err))
				continue
			}
			failures[i] = 0
			if round == 0 {
				continue
			}
			for figure, v := range values {
				r.Add(Key{work, c.Name, figure}, v)
			}
		}
	}
	return nil
}
