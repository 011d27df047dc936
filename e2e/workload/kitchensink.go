package workload

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
)

// BuildKitchenSink compiles the kitchen sink into a static program at path. It
// needs a C compiler and the static C library (Debian: gcc, libc6-dev).
func BuildKitchenSink(ctx context.Context, path string) error {
	_, here, _, ok := runtime.Caller(0)
	if !ok {
		return errors.New("building the kitchen sink: the place of its source is not known")
	}
	sources, err := filepath.Glob(filepath.Join(filepath.Dir(here), "kitchensink", "*.c"))
	if err != nil || len(sources) == 0 {
		return fmt.Errorf("building the kitchen sink: no source beside %s: %w", here, err)
	}
	args := append([]string{"-std=gnu17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-static", "-o", path}, sources...)
	if out, err := exec.CommandContext(ctx, "cc", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("building the kitchen sink: %w\n%s", err, out)
	}
	return nil
}

// SinkReport is what a kitchen sink printed after its check.
type SinkReport struct {
	// OK are the states that were found again.
	OK []string
	// Failed are those that were not, with the reason.
	Failed map[string]string
}

// Err is nil if the sink found all its states again.
func (r SinkReport) Err() error {
	if len(r.Failed) == 0 && len(r.OK) > 0 {
		return nil
	}
	var b strings.Builder
	fmt.Fprintf(&b, "kitchen sink: %d ok, %d failed", len(r.OK), len(r.Failed))
	for name, reason := range r.Failed {
		fmt.Fprintf(&b, "\n\t%s: %s", name, reason)
	}
	return errors.New(b.String())
}

// ParseSinkReport reads the output of a kitchen sink. It fails if the sink did
// not get to its last line, or counts other than there are lines.
func ParseSinkReport(r io.Reader) (SinkReport, error) {
	report := SinkReport{Failed: map[string]string{}}
	scanner := bufio.NewScanner(r)
	for scanner.Scan() {
		line := scanner.Text()
		if name, ok := strings.CutPrefix(line, "ok "); ok {
			report.OK = append(report.OK, name)
		} else if rest, ok := strings.CutPrefix(line, "FAIL "); ok {
			name, reason, _ := strings.Cut(rest, ": ")
			report.Failed[name] = reason
		} else if strings.HasPrefix(line, "done ") {
			var passed, failed int
			if _, err := fmt.Sscanf(line, "done %d ok %d failed", &passed, &failed); err != nil {
				return report, fmt.Errorf("kitchen sink: last line %q: %w", line, err)
			}
			if passed != len(report.OK) || failed != len(report.Failed) {
				return report, fmt.Errorf("kitchen sink: %q after %d ok and %d failed", line, len(report.OK), len(report.Failed))
			}
			return report, nil
		}
	}
	if err := scanner.Err(); err != nil {
		return report, fmt.Errorf("kitchen sink: %w", err)
	}
	return report, fmt.Errorf("kitchen sink: it did not finish its check (%d ok, %d failed so far)", len(report.OK), len(report.Failed))
}
