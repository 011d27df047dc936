package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"podd/bench/measure"
)

// WriteTable writes the report to be read on a terminal.
func (r *Report) WriteTable(w io.Writer) error {
	fmt.Fprintf(w, "%s\n%s\n\n", r.About, r.Machine)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range r.rows() {
		fmt.Fprintln(t, strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	if err := t.Flush(); err != nil {
		return fmt.Errorf("writing the table: %w", err)
	}
	if len(r.Verdicts) > 0 {
		fmt.Fprintln(w)
		for _, row := range r.verdicts() {
			fmt.Fprintln(t, strings.Join(row, "\t"))
		}
		if err := t.Flush(); err != nil {
			return fmt.Errorf("writing the table: %w", err)
		}
	}
	for _, f := range r.Failures {
		if f.Final {
			fmt.Fprintf(w, "\nno figures of %s by %s: %s\n", f.Work, f.Contender, f.Reason)
		}
	}
	if n := r.lost(); n > 0 {
		fmt.Fprintf(w, "\n%d repetitions failed; the JSON has their errors\n", n)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(w, "\n%s\n", note)
	}
	_, err := fmt.Fprintln(w)
	return err
}

// WriteMarkdown writes the report's tables as documentation has them.
func (r *Report) WriteMarkdown(w io.Writer) error {
	fmt.Fprintf(w, "%s, commit %s: %s.\n\n", r.Started.UTC().Format("2006-01-02 15:04 MST"), r.Machine.Commit, r.Machine)
	for _, table := range [][][]string{r.verdicts(), r.rows()} {
		if len(table) < 2 {
			continue
		}
		for i, row := range table {
			fmt.Fprintf(w, "| %s |\n", strings.Join(row, " | "))
			if i == 0 {
				fmt.Fprintf(w, "|%s\n", strings.Repeat("---|", len(row)))
			}
		}
		fmt.Fprintln(w)
	}
	for _, f := range r.Failures {
		if f.Final {
			fmt.Fprintf(w, "- No figures of %s by %s: %s\n", f.Work, f.Contender, strings.ReplaceAll(f.Reason, "\n", " "))
		}
	}
	if n := r.lost(); n > 0 {
		fmt.Fprintf(w, "- %d repetitions failed and are not counted.\n", n)
	}
	for _, note := range r.Notes {
		fmt.Fprintf(w, "- %s\n", note)
	}
	if lines := r.Behind(); len(lines) > 0 {
		fmt.Fprintf(w, "\nWhere podd's median is **not** the best of this run:\n\n")
		for _, line := range lines {
			fmt.Fprintf(w, "- %s\n", line)
		}
	}
	_, err := fmt.Fprintln(w)
	return err
}

// lost counts repetitions that failed without the contender being given up.
func (r *Report) lost() int {
	n := 0
	for _, f := range r.Failures {
		if !f.Final {
			n++
		}
	}
	return n
}

// rows is a row for each work and contender, a column for each figure.
func (r *Report) rows() [][]string {
	figures := r.shown()
	head := []string{"work", "by", "n"}
	head = append(head, figures...)
	rows := [][]string{head}
	for _, c := range r.cases() {
		row, n := []string{c.Work, c.Contender, ""}, 0
		for _, f := range figures {
			cell := ""
			if s := r.series(measure.Key{Work: c.Work, Contender: c.Contender, Figure: f}); s != nil {
				n = max(n, s.Summary.N)
				cell = spread(s.Summary, s.Unit)
			}
			row = append(row, cell)
		}
		row[2] = fmt.Sprint(n)
		rows = append(rows, row)
	}
	return rows
}

// shown lists the figures that there are samples of, in the report's order.
func (r *Report) shown() []string {
	var names []string
	for _, f := range r.Figures {
		if slices.ContainsFunc(r.Series, func(s Series) bool { return s.Figure == f.Name }) {
			names = append(names, f.Name)
		}
	}
	return names
}

// cases lists works and contenders; the works in the order of their first
// samples.
func (r *Report) cases() []measure.Key {
	var works []string
	contenders := map[string][]measure.Key{}
	for _, s := range r.Series {
		c := measure.Key{Work: s.Work, Contender: s.Contender}
		if contenders[s.Work] == nil {
			works = append(works, s.Work)
		}
		if !slices.Contains(contenders[s.Work], c) {
			contenders[s.Work] = append(contenders[s.Work], c)
		}
	}
	var all []measure.Key
	for _, w := range works {
		all = append(all, contenders[w]...)
	}
	return all
}

// verdicts is a row for each bar.
func (r *Report) verdicts() [][]string {
	rows := [][]string{{"bar", "limit", "measured", "95 % of it", "n", "verdict"}}
	for _, v := range r.Verdicts {
		sign := "<="
		if v.AtLeast {
			sign = ">="
		}
		row := []string{v.Name, sign + " " + format(v.Limit, v.Unit), "-", "-", fmt.Sprint(v.Count), "not measured"}
		if !v.Missing {
			row[2] = format(v.Value, v.Unit)
			row[3] = format(v.Interval.Low, v.Unit) + " to " + format(v.Interval.High, v.Unit)
			row[5] = "missed"
			if v.Pass {
				row[5] = "met"
			}
		}
		rows = append(rows, row)
	}
	return rows
}

// spread is the median with the least and the greatest.
func spread(s measure.Summary, unit string) string {
	if s.Min == s.Max {
		return format(s.Median, unit)
	}
	return fmt.Sprintf("%s (%s-%s)", format(s.Median, unit), bare(s.Min, unit), bare(s.Max, unit))
}

// format writes a value with three digits and its unit.
func format(v float64, unit string) string {
	text, unit := scale(v, unit)
	if unit == "" {
		return text
	}
	return text + " " + unit
}

// bare is format without the unit, unless that is scaled.
func bare(v float64, unit string) string {
	if unit == "B" {
		return format(v, unit)
	}
	text, _ := scale(v, unit)
	return text
}

func scale(v float64, unit string) (string, string) {
	if unit == "B" {
		prefixes := []string{"B", "KiB", "MiB", "GiB", "TiB"}
		i := 0
		for ; v >= 1024 && i < len(prefixes)-1; i++ {
			v /= 1024
		}
		unit = prefixes[i]
	}
	switch magnitude := max(v, -v); {
	case magnitude >= 100 || v == float64(int64(v)):
		return fmt.Sprintf("%.0f", v), unit
	case magnitude >= 10:
		return fmt.Sprintf("%.1f", v), unit
	case magnitude >= 1:
		return fmt.Sprintf("%.2f", v), unit
	}
	return fmt.Sprintf("%.3f", v), unit
}
