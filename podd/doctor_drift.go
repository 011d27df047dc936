package podd

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"podd/doctor"
	"podd/pod"
)

const (
	// driftWait bounds the wait for the reconcile loop to have another look,
	// driftPoll is the pause between two questions whether it has.
	driftWait = 3 * time.Second
	driftPoll = 20 * time.Millisecond
	// driftFresh is how long something that was put right is worth telling.
	driftFresh = 10 * time.Minute
	// driftStale is how old the last look may be.
	driftStale = 3 * reconcileInterval
)

// driftFacts are differences between this host and the directory.
type driftFacts struct {
	report driftReport
	now    time.Time
	// arrivals are of the pods here that are given memory.
	arrivals map[string]pod.Arrival
}

// examineDrift makes the reconcile loop look once more, and takes its report.
func (d *Daemon) examineDrift(ctx context.Context) []doctor.Facts {
	ctx, cancel := context.WithTimeout(ctx, driftWait)
	defer cancel()
	before := d.driftReport().passes
	d.wakeReconcile()
	ticker := time.NewTicker(driftPoll)
	defer ticker.Stop()
	for d.driftReport().passes == before && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
	return []doctor.Facts{driftFacts{report: d.driftReport(), now: time.Now(), arrivals: d.arrivals()}}
}

// Judge: what could not be put right is an error as long as it is tried in vain;
// what was is a warning for a while.
func (f driftFacts) Judge() []doctor.Finding {
	const check = "drift"
	var findings []doctor.Finding
	switch {
	case f.report.last.IsZero(), f.now.Sub(f.report.last) > driftStale:
		findings = append(findings, doctor.Worry(check, "systemctl restart podd   # pods run on meanwhile", "podd has not compared this host with the directory for a while; what differs is not known"))
	case f.report.err != nil:
		findings = append(findings, doctor.Bad(check, "journalctl -u podd -n 50   # says what keeps it from it; it goes on trying", "this host could not be compared with the directory: %v", f.report.err))
	}
	for _, name := range slices.Sorted(maps.Keys(f.arrivals)) {
		if arrival := f.arrivals[name]; arrival.Stalled != "" {
			findings = append(findings, doctor.Bad(check, "podctl move ls "+name+"   # start podd on the host that it came from; if that is gone for good, podctl rm --force "+name+" gives the pod up, and podctl host rm the host",
				"pod %s stands still: %d MiB of its memory are missing since it moved here: %s", name, arrival.Missing>>20, arrival.Stalled))
		}
	}
	subject := func(found drift) string {
		if found.pod == "" {
			return strings.TrimSpace(found.what)
		}
		return fmt.Sprintf("pod %s, epoch %d: %s", found.pod, found.epoch, strings.TrimSpace(found.what))
	}
	failing := map[string]drift{}
	repaired := map[driftKind][]drift{}
	for _, found := range f.report.recent {
		age := f.now.Sub(found.at)
		switch {
		case found.err == nil:
			delete(failing, subject(found))
			if age < driftFresh {
				repaired[found.kind] = append(repaired[found.kind], found)
			}
		case age < 2*reconcileInterval:
			failing[subject(found)] = found
		}
	}
	for _, what := range slices.Sorted(maps.Keys(failing)) {
		findings = append(findings, doctor.Bad(check, "journalctl -u podd -g drift -n 50   # it goes on trying; what holds on to it? fuser -vm PATH, ip netns pids NAME",
			"this differs from the directory and can't be put right: %s: %v", what, failing[what].err))
	}
	for _, kind := range slices.Sorted(maps.Keys(repaired)) {
		last := repaired[kind][len(repaired[kind])-1]
		findings = append(findings, doctor.Worry(check, "journalctl -u podd -g drift -n 50   # says when; nothing is left to be done, unless it comes again",
			"%d of kind %s differed from the directory in the last %d minutes and %s put right, the last %s ago: %s", len(repaired[kind]), kind,
			int(driftFresh.Minutes()), plural(len(repaired[kind]), "was", "were"), f.now.Sub(last.at).Round(time.Second), subject(last)))
	}
	if len(findings) == 0 {
		var total uint64
		for _, n := range f.report.repaired {
			total += n
		}
		findings = append(findings, doctor.Good(check, "this host is as the directory says; %s put right since podd's start", counted(total, "difference")))
	}
	return findings
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

func counted(n uint64, what string) string {
	if n == 1 {
		return "1 " + what + " was"
	}
	return fmt.Sprintf("%d %ss were", n, what)
}
