package recovery

import (
	"fmt"

	"podd/pod"
)

// Victim is who fails.
type Victim string

// Those who take part in a move.
const (
	Source    Victim = "source"    // the podd that the pod leaves
	Target    Victim = "target"    // the podd that it goes to
	Proxy     Victim = "podproxy"  // without the directory
	Directory Victim = "directory" // etcd, in a process of its own
)

// Victims lists them in the order of the table.
var Victims = []Victim{Source, Target, Proxy, Directory}

// Fault is how one fails.
type Fault string

// The faults. What ends is started again at once, as systemd would.
const (
	Kill Fault = "kill" // SIGKILL
	Stop Fault = "stop" // SIGSTOP, for 5 s
	Full Fault = "full" // no space on its disks, until the move has ended
	Cut  Fault = "cut"  // its node loses every other, for longer than its lease
)

// Faults lists them in the order of the table.
var Faults = []Fault{Kill, Stop, Full, Cut}

// Outcome is where the pod is in the end, in exactly one place in any case.
type Outcome string

const (
	// Stays: on the source, as if nothing had happened.
	Stays Outcome = "stays"
	// Goes: on the target.
	Goes Outcome = "goes"
	// Either: on one of the two, because two things race, or because it
	// depends on how quickly others answer. The directory says on which.
	Either Outcome = "either"
)

// Moment is an instant of a move: the beginning of a stage, or one of two
// others at which the rights change hands.
type Moment struct {
	Name  string
	Stage pod.Stage
	// points are where package fault can stop each of the two.
	source, target string
	// targetLeads says that it is the target that carries out this part.
	targetLeads bool
	// Strategy is how the move has to carry memory for the moment to come; empty
	// if it always does.
	Strategy pod.Strategy
}

// Point is where to stop a daemon so that the victim fails at this moment: its
// own point or, if it has none, that of who leads.
func (m Moment) Point(v Victim) string {
	switch {
	case v == Source, v == Target && m.target == "", v != Target && !m.targetLeads:
		return m.source
	}
	return m.target
}

// Moments lists all, in order.
var Moments = []Moment{
	{"preflight", pod.StagePreflight, "source:preflight", "target:preflight", false, ""},
	{"reserve", pod.StageReserve, "source:reserve", "target:reserve", false, ""},
	{"presync", pod.StagePresync, "source:presync", "target:presync", false, ""},
	{"hold", pod.StageHold, "source:hold", "", false, ""},
	{"freeze", pod.StageFreeze, "source:freeze", "", false, ""},
	{"dump", pod.StageDump, "source:dump", "", false, ""},
	{"transfer", pod.StageTransfer, "source:transfer", "target:transfer", false, ""},
	{"restore", pod.StageRestore, "source:restore", "target:restore", false, ""},
	// From here on the target may commit any time.
	{"restore asked for", pod.StageRestore, "source:restore-asked", "", false, ""},
	// Restored, and not committed.
	{"commit", pod.StageCommit, "source:commit", "target:commit", true, ""},
	// Committed, and the pod does not run.
	{"committed", pod.StageCommit, "source:committed", "target:committed", true, ""},
	// The pod runs on the target.
	{"release", pod.StageRelease, "source:release", "target:release", true, ""},
	// The rest of its memory follows.
	{"memory", pod.StageMemory, "source:memory", "target:memory", true, pod.StrategyPostCopy},
}

// Cell is what is to be expected of one fault.
type Cell struct {
	Moment  Moment
	Victim  Victim
	Fault   Fault
	Outcome Outcome
}

func (c Cell) String() string { return fmt.Sprintf("%s: %s %s", c.Moment.Name, c.Victim, c.Fault) }

// By is the outcome if the move carries memory by a strategy. A restore by post-copy
// may need the source, which is cut off, or has sent enough before. By checkpoint-server
// the two hosts lose each other with podproxy, unless it only stands still.
func (c Cell) By(strategy pod.Strategy) Outcome {
	switch {
	case c.Moment.Strategy != "":
		return c.Outcome
	case strategy == pod.StrategyPostCopy && c.Victim == Source && c.Fault == Cut && c.Moment.Name == "restore asked for":
		return Either
	case strategy == pod.StrategyCheckpointServer && c.Victim == Proxy && (c.Fault == Kill || c.Fault == Cut):
		return c.Moment.disconnected()
	}
	return c.Outcome
}

// disconnected is the outcome if the connection of source and target ends at the moment.
func (m Moment) disconnected() Outcome {
	switch m.Name {
	case "restore asked for", "commit":
		return Either // the source aborts while the target commits
	case "committed", "release", "memory":
		return Goes
	}
	return Stays
}

// Cells lists every cell: all moments, victims and faults with one another.
func Cells() []Cell {
	var cells []Cell
	for _, m := range Moments {
		for _, v := range Victims {
			for _, f := range Faults {
				cells = append(cells, Cell{m, v, f, Expected(m.Name, v, f)})
			}
		}
	}
	return cells
}

// Expected is the outcome that the table gives, empty if it has none.
func Expected(moment string, v Victim, f Fault) Outcome {
	for _, r := range table {
		for _, name := range r.moments {
			if name == moment {
				return r.cells[v].outcomes[f]
			}
		}
	}
	return ""
}
