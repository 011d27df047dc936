package recovery

import (
	"fmt"
	"slices"
	"strings"
)

// The lines of ARCHITECTURE.md between which the tables are.
const (
	beginMark = "<!-- the tables of fault/recovery, written by its test -->"
	endMark   = "<!-- end of the tables -->"
)

// Markdown is the tables as ARCHITECTURE.md shows them.
func Markdown() string { return failuresMarkdown() + "\n" + partitionsMarkdown() }

func failuresMarkdown() string {
	var b strings.Builder
	b.WriteString("| at | source fails | target fails | podproxy fails | the directory fails |\n|---|---|---|---|---|\n")
	for _, r := range table {
		fmt.Fprintf(&b, "| %s |", strings.Join(r.moments, ", "))
		for _, v := range Victims {
			fmt.Fprintf(&b, " %s |", r.cells[v])
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// String is "**stays** (stop: goes). What each does": the usual outcome, and the
// faults that have another one.
func (c cell) String() string {
	usual := c.outcomes[Kill]
	var others []string
	for _, o := range []Outcome{Stays, Goes, Either} {
		var faults []string
		for _, f := range Faults {
			if c.outcomes[f] == o {
				faults = append(faults, string(f))
			}
		}
		if o != usual && len(faults) > 0 {
			others = append(others, fmt.Sprintf("%s: **%s**", strings.Join(faults, ", "), o))
		}
	}
	text := fmt.Sprintf("**%s**", usual)
	if len(others) > 0 {
		text += " (" + strings.Join(others, "; ") + ")"
	}
	return text + ". " + c.does
}

// Replace puts the tables between the marks of a document; it returns an error if
// there are none.
func Replace(document string) (string, error) {
	lines := strings.Split(document, "\n")
	begin, end := slices.Index(lines, beginMark), slices.Index(lines, endMark)
	if begin < 0 || end < begin {
		return "", fmt.Errorf("the document lacks the lines %q and %q", beginMark, endMark)
	}
	table := strings.Split(strings.TrimSuffix(Markdown(), "\n"), "\n")
	return strings.Join(slices.Concat(lines[:begin+1], table, lines[end:]), "\n"), nil
}
