// Package doctor finds out what is wrong with a machine that runs podd or
// podproxy, and says what to do about it. Gathering facts and judging them are
// apart: facts are plain values, so that every judgement can be tested with
// made-up ones, and the gathering changes nothing that would outlive it.
//
// podd and podproxy add the facts about themselves and the cluster. The
// kernel is asked to do what pods need, in namespaces that are thrown away, and
// not what it was configured with: only that counts.
package doctor

import (
	"fmt"

	poddv1 "podd/api/podd/v1"
)

// Severity says how bad a finding is.
type Severity string

const (
	// OK: looked at, and as it should be.
	OK Severity = "ok"
	// Warning: pods run and move, but not as well or not for much longer.
	Warning Severity = "warning"
	// Error: pods can't run, be moved or be reached.
	Error Severity = "error"
)

// Finding is what one look has shown.
type Finding struct {
	// Check names what was looked at: "criu", "clock".
	Check    string
	Severity Severity
	// Detail says what was found.
	Detail string
	// Remedy says what to do, as a command wherever there is one; empty when
	// Severity is OK.
	Remedy string
}

// Good is a finding that all is well.
func Good(check, format string, args ...any) Finding {
	return Finding{Check: check, Severity: OK, Detail: fmt.Sprintf(format, args...)}
}

// Worry is a finding that something could be better.
func Worry(check, remedy, format string, args ...any) Finding {
	return Finding{Check: check, Severity: Warning, Detail: fmt.Sprintf(format, args...), Remedy: remedy}
}

// Bad is a finding that something does not work.
func Bad(check, remedy, format string, args ...any) Finding {
	return Finding{Check: check, Severity: Error, Detail: fmt.Sprintf(format, args...), Remedy: remedy}
}

// Facts can be judged.
type Facts interface {
	// Judge says what the facts mean: at least one finding.
	Judge() []Finding
}

// Judge judges all facts, in their order. What is well with several of one kind,
// such as other hosts, becomes one finding.
func Judge(all ...Facts) []Finding {
	var findings []Finding
	for _, f := range all {
		findings = append(findings, f.Judge()...)
	}
	return condense(findings)
}

// detailsShown is how many details one finding that all is well has.
const detailsShown = 3

// condense makes one of the good findings of each check, at the place of the first.
func condense(findings []Finding) []Finding {
	var out []Finding
	first, count := map[string]int{}, map[string]int{}
	for _, f := range findings {
		if f.Severity != OK {
			out = append(out, f)
			continue
		}
		count[f.Check]++
		if count[f.Check] == 1 {
			first[f.Check] = len(out)
			out = append(out, f)
		} else if count[f.Check] <= detailsShown {
			out[first[f.Check]].Detail += "; " + f.Detail
		}
	}
	for check, n := range count {
		if n > detailsShown {
			out[first[check]].Detail += fmt.Sprintf("; and %d more", n-detailsShown)
		}
	}
	return out
}

// ToProto converts findings for the wire.
func ToProto(findings []Finding) []*poddv1.Finding {
	out := make([]*poddv1.Finding, 0, len(findings))
	for _, f := range findings {
		out = append(out, &poddv1.Finding{Check: f.Check, Severity: string(f.Severity), Detail: f.Detail, Remedy: f.Remedy})
	}
	return out
}

// FromProto converts findings from the wire.
func FromProto(findings []*poddv1.Finding) []Finding {
	var out []Finding
	for _, f := range findings {
		out = append(out, Finding{Check: f.GetCheck(), Severity: Severity(f.GetSeverity()), Detail: f.GetDetail(), Remedy: f.GetRemedy()})
	}
	return out
}

// unknown is a finding that a fact could not be had.
func unknown(check string, err error) Finding {
	return Worry(check, "look into why the daemon, which runs as root, can't find out: its log may say more", "not known: %v", err)
}
