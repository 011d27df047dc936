package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"podd/pod"
)

// The two ANSI control sequences (ECMA-48) that a live display takes.
const (
	clearLine  = "\x1b[K" // erase from the cursor to the end of the line
	cursorUp   = "\x1b[%dA"
	resetTerms = "\r"
)

// progress shows the stages of a move, a line each. On a terminal all lines are
// drawn again in place as bytes and time grow; elsewhere a stage's line is
// written when the next stage begins.
type progress struct {
	w io.Writer
	// heading is written when the first stage begins.
	heading string
	// now is the clock.
	now func() time.Time
	// live redraws in place, hidden shows nothing.
	live, hidden bool
	// width is the terminal's, in columns; 0 if it isn't known.
	width int

	rows []progressRow
	// notes are lines below the stages.
	notes []string
	drawn int // lines on the terminal that the next drawing replaces
}

// progressRow is one stage.
type progressRow struct {
	stage        pod.Stage
	bytes, total int64
	begun, ended time.Time // ended is zero while the stage lasts
	failed       bool
}

// update takes in what podd says about a stage.
func (p *progress) update(stage pod.Stage, bytes, total int64) {
	row := p.row(stage)
	row.bytes, row.total = max(row.bytes, bytes), max(row.total, total)
	p.tick()
}

// row finds a stage's row or begins it, which ends the one before.
func (p *progress) row(stage pod.Stage) *progressRow {
	for i := range p.rows {
		if p.rows[i].stage == stage {
			return &p.rows[i]
		}
	}
	if len(p.rows) == 0 && !p.hidden {
		fmt.Fprintln(p.w, p.heading)
	}
	p.endLast(false)
	p.rows = append(p.rows, progressRow{stage: stage, begun: p.now()})
	return &p.rows[len(p.rows)-1]
}

// endLast ends the stage that lasts.
func (p *progress) endLast(failed bool) {
	if len(p.rows) == 0 {
		return
	}
	row := &p.rows[len(p.rows)-1]
	if !row.ended.IsZero() {
		return
	}
	row.ended, row.failed = p.now(), failed
	if !p.live && !p.hidden {
		fmt.Fprintln(p.w, p.line(*row))
	}
}

// finish ends the last stage, which failed or not.
func (p *progress) finish(failed bool) {
	p.endLast(failed)
	p.tick()
}

// say writes a line that is no stage's; it is not hidden.
func (p *progress) say(note string) {
	if !p.live || p.hidden {
		fmt.Fprintln(p.w, note)
		return
	}
	p.notes = append(p.notes, note)
	p.tick()
}

// tick draws the lines again; it does nothing off a terminal.
func (p *progress) tick() {
	if !p.live || p.hidden || len(p.rows)+len(p.notes) == 0 {
		return
	}
	var out strings.Builder
	if p.drawn > 0 {
		fmt.Fprintf(&out, cursorUp, p.drawn)
	}
	lines := make([]string, 0, len(p.rows)+len(p.notes))
	for _, row := range p.rows {
		lines = append(lines, p.line(row))
	}
	for _, line := range append(lines, p.notes...) {
		if p.width > 0 {
			line = shorten(line, p.width-1) // a line that wraps can't be drawn over
		}
		out.WriteString(resetTerms + line + clearLine + "\n")
	}
	p.drawn = len(p.rows) + len(p.notes)
	io.WriteString(p.w, out.String())
}

// line is one stage's line: name, elapsed time, bytes of total, rate.
func (p *progress) line(row progressRow) string {
	end := row.ended
	if end.IsZero() {
		end = p.now()
	}
	elapsed := end.Sub(row.begun)
	line := fmt.Sprintf("  %-10s %9s", row.stage, formatDuration(elapsed))
	if row.bytes > 0 {
		size := formatBytes(row.bytes)
		if row.total > row.bytes {
			size += " of " + formatBytes(row.total)
		}
		line += "  " + size
		if rate := formatRate(row.bytes, elapsed); rate != "" {
			line += ", " + rate
		}
	}
	if row.failed {
		line += "  failed"
	}
	return line
}

// formatRate is bytes per second for people; empty when it means nothing.
func formatRate(bytes int64, elapsed time.Duration) string {
	if bytes <= 0 || elapsed < time.Millisecond {
		return ""
	}
	return formatBytes(int64(float64(bytes)/elapsed.Seconds())) + "/s"
}
