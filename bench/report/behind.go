package report

import (
	"fmt"

	"podd/bench/measure"
)

// own is the contender whose program this is.
const own = "podd"

// Behind lists the works and figures in which another contender's median is
// better than podd's, a line each.
func (r *Report) Behind() []string {
	var lines []string
	for _, f := range r.Figures {
		if f.Better == "" {
			continue
		}
		for _, c := range r.cases() {
			ours := r.series(measure.Key{Work: c.Work, Contender: own, Figure: f.Name})
			theirs := r.series(measure.Key{Work: c.Work, Contender: c.Contender, Figure: f.Name})
			if ours == nil || theirs == nil || ours == theirs {
				continue
			}
			a, b := ours.Summary.Median, theirs.Summary.Median
			if f.Better == "more" {
				a, b = b, a
			}
			if a > b {
				lines = append(lines, fmt.Sprintf("%s, %s: %s %s, %s %s", c.Work, f.Name, own, format(ours.Summary.Median, f.Unit), c.Contender, format(theirs.Summary.Median, f.Unit)))
			}
		}
	}
	return lines
}
