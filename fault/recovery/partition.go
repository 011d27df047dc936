package recovery

import (
	"fmt"
	"strings"
	"time"

	"podd/pod"
)

// Pair is two who lose each other, and nobody else.
type Pair [2]Victim

// Pairs lists all.
var Pairs = []Pair{
	{Source, Target}, {Source, Proxy}, {Source, Directory}, {Target, Proxy}, {Target, Directory}, {Proxy, Directory},
}

// PartitionMoments are those at which links are cut: before anything is held,
// when the pod is frozen, between its restore and the commit, and after that.
var PartitionMoments = []string{"hold", "dump", "commit", "committed"}

// Short and Long are how long a link is cut: a disturbance, and longer than
// every lease and everybody's patience.
const (
	Short = 3 * time.Second
	Long  = 25 * time.Second
)

// Partition is a cell of the table of partitions.
type Partition struct {
	Moment  Moment
	Pair    Pair
	Lasts   time.Duration
	Outcome Outcome
}

func (p Partition) String() string {
	return fmt.Sprintf("%s: %s-%s for %s", p.Moment.Name, p.Pair[0], p.Pair[1], p.Lasts)
}

// Point is where to stop a daemon so that the link is cut at the moment.
func (p Partition) Point() string {
	if p.Moment.targetLeads {
		return p.Moment.target
	}
	return p.Moment.source
}

// By is the outcome if the move carries memory by a strategy: by checkpoint-server
// source and target have no link but those to podproxy.
func (p Partition) By(strategy pod.Strategy) Outcome {
	if strategy == pod.StrategyCheckpointServer && p.Lasts == Long {
		switch p.Pair {
		case Pair{Source, Target}:
			return Goes
		case Pair{Source, Proxy}, Pair{Target, Proxy}:
			return longPartitions[Pair{Source, Target}].outcomes[p.Moment.Name]
		}
	}
	return p.Outcome
}

// Partitions lists every cell. A short disturbance changes nothing.
func Partitions() []Partition {
	var all []Partition
	for _, name := range PartitionMoments {
		for _, pair := range Pairs {
			for _, lasts := range []time.Duration{Short, Long} {
				p := Partition{Pair: pair, Lasts: lasts, Outcome: Goes}
				for _, m := range Moments {
					if m.Name == name {
						p.Moment = m
					}
				}
				if lasts == Long {
					p.Outcome = longPartitions[pair].outcomes[name]
				}
				all = append(all, p)
			}
		}
	}
	return all
}

// longPartition is what becomes of the pod when a link is cut for long.
type longPartition struct {
	outcomes map[string]Outcome
	why      string
}

func moments(hold, dump, commit, committed Outcome) map[string]Outcome {
	return map[string]Outcome{"hold": hold, "dump": dump, "commit": commit, "committed": committed}
}

var longPartitions = map[Pair]longPartition{
	{Source, Target}: {moments(Stays, Stays, Goes, Goes),
		"The source aborts when its kernel has got no answer for 10 s; from the restore on the target needs only the directory, and the source asks that"},
	{Source, Proxy}: {moments(Goes, Goes, Goes, Goes),
		"Nothing is held, at most; clients that send again reach the pod on the target at once"},
	{Source, Directory}: {moments(Stays, Goes, Goes, Goes),
		"Before the freeze the source gives up after 5 s. Afterwards it asks nothing until the target has committed; then it stands still until it hears so"},
	{Target, Proxy}: {moments(Goes, Goes, Goes, Goes),
		"The move is none of the proxy's business, but the pod hears from its clients only when the link is back"},
	{Target, Directory}: {moments(Stays, Stays, Stays, Goes),
		"The target can't commit, and stands still. The source learns from the directory that its lease has run out, and aborts"},
	{Proxy, Directory}: {moments(Goes, Goes, Goes, Goes),
		"podproxy holds, and goes on sending to the old label, until it sees the commit; the old copy is silent"},
}

// partitionsMarkdown is the table of long partitions.
func partitionsMarkdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "| cut for %s at | %s | |\n|---|%s---|\n", Long, strings.Join(PartitionMoments, " | "), strings.Repeat("---|", len(PartitionMoments)))
	for _, pair := range Pairs {
		fmt.Fprintf(&b, "| %s and %s |", pair[0], pair[1])
		for _, name := range PartitionMoments {
			fmt.Fprintf(&b, " %s |", longPartitions[pair].outcomes[name])
		}
		fmt.Fprintf(&b, " %s |\n", longPartitions[pair].why)
	}
	return b.String()
}
