package doctor

import (
	"fmt"
	"time"
)

// Peer is another daemon of the cluster, as seen from this one.
type Peer struct {
	// Kind is "host" or "proxy".
	Kind, Name string
	// Address is its API's.
	Address string
	// Alive says that its lease lasts.
	Alive bool
	// Err is why it does not answer. RoundTrip is how long a call took.
	Err       error
	RoundTrip time.Duration
	// Version is its own, Ours this daemon's.
	Version, Ours string
	// Offset is how far its clock is ahead of ours, by the middle of the call.
	// Timed says that it is known.
	Offset time.Duration
	Timed  bool
}

const (
	// clockWorry is where logs and audit records of two machines begin to
	// contradict each other.
	clockWorry = time.Second
	// clockLimit is what certificates are made to bear: they begin that long
	// before they are issued.
	clockLimit = 5 * time.Minute
)

// ClockOffset is how far a clock that showed there while the call from began to
// ended was under way is ahead of ours. It is exact to half the round trip.
func ClockOffset(began, there, ended time.Time) time.Duration {
	return there.Sub(began.Add(ended.Sub(began) / 2)).Round(time.Microsecond)
}

// Judge is about whether it answers, and its clock.
func (p Peer) Judge() []Finding {
	check, service := "hosts", "podd"
	if p.Kind == "proxy" {
		check, service = "proxy", "podproxy"
	}
	switch {
	case !p.Alive && p.Kind == "host":
		return []Finding{Worry(check, fmt.Sprintf("systemctl start podd   # on %s; if it will not come back: podctl host rm %s", p.Name, p.Name),
			"host %s is down: its podd does not tell the directory that it lives", p.Name)}
	case !p.Alive:
		return []Finding{Bad(check, fmt.Sprintf("systemctl start podproxy   # on %s", p.Name),
			"proxy %s is down: pods go on, but nobody notices when they start or move", p.Name)}
	case p.Err != nil:
		return []Finding{Bad(check, fmt.Sprintf("curl -k https://%s/healthz   # from here; is there a firewall in between, or does %s hang on %s?", p.Address, service, p.Name),
			"%s %s is up but can't be reached from here at %s: %v", p.Kind, p.Name, p.Address, p.Err)}
	}
	var findings []Finding
	if p.Version != "" && p.Version != p.Ours {
		findings = append(findings, Worry(check, "install the same version on all machines", "%s %s runs version %s, this one %s", p.Kind, p.Name, p.Version, p.Ours))
	} else {
		findings = append(findings, Good(check, "%s %s answers in %s", p.Kind, p.Name, p.RoundTrip.Round(10*time.Microsecond)))
	}
	if p.Timed {
		findings = append(findings, p.judgeClock())
	}
	return findings
}

func (p Peer) judgeClock() Finding {
	direction := "ahead of"
	if p.Offset < 0 {
		direction = "behind"
	}
	// No better known than to half the round trip.
	off := max(p.Offset.Abs()-p.RoundTrip/2, 0)
	detail := fmt.Sprintf("the clock of %s %s is %s %s this one", p.Kind, p.Name, p.Offset.Abs().Round(time.Millisecond), direction)
	remedy := fmt.Sprintf("timedatectl set-ntp true   # here or on %s, whichever is wrong: date -u", p.Name)
	switch {
	case off > clockLimit:
		return Bad("clock", remedy, "%s: certificates that one of them issues are not yet good for the other", detail)
	case off > clockWorry:
		return Worry("clock", remedy, "%s: logs and audit records of the two contradict each other", detail)
	}
	return Good("clock", "%s %s has the same time, to %s", p.Kind, p.Name, max(p.Offset.Abs(), p.RoundTrip/2).Round(100*time.Microsecond))
}

// Directory is how the directory answers.
type Directory struct {
	// Latency is that of a read.
	Latency time.Duration
	Err     error
}

// directoryWorry is how slow the directory may be: a pod is frozen while the
// commit of its move is written.
const directoryWorry = 100 * time.Millisecond

// Judge is an error when it does not answer.
func (d Directory) Judge() []Finding {
	switch {
	case d.Err != nil:
		return []Finding{Bad("directory", "systemctl status podproxy   # where the directory is embedded; else etcdctl endpoint health on its machines",
			"it can't be reached: %v", d.Err)}
	case d.Latency > directoryWorry:
		return []Finding{Worry("directory", "etcdctl check perf   # is its disk slow or its machine busy? vmstat 1",
			"a read takes %s; a pod is frozen while its move is committed there", d.Latency.Round(time.Millisecond))}
	}
	return []Finding{Good("directory", "a read takes %s", d.Latency.Round(10*time.Microsecond))}
}
