//go:build e2e

package e2e

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"podd/fault/recovery"
	"podd/pod"
)

// TestPartitions makes two of those who take part in a move lose each other, and
// nobody else: every pair with -faults, else one. The directory has three
// members, on one node; also its leader is made to change.
func TestPartitions(t *testing.T) {
	cells := recovery.Partitions()
	if !*allFaults {
		cells = sample(cells[:len(cells):len(cells)], len(cells))
		for i, c := range cells {
			if c.Lasts == recovery.Short { // the others take too long
				cells = cells[i : i+1]
				break
			}
		}
	}
	directory := directoryApart(t, 3)
	for _, c := range cells {
		t.Run(c.String(), func(t *testing.T) {
			s := newScene(t)
			s.begin(c.Point(), "stop")
			heal := part(t, nodes[c.Pair[0]], nodes[c.Pair[1]])
			resume(t, nodeOf(c.Point()))
			pass(c.Lasts)
			heal()
			s.requireTold(s.requireOutcome(c.By(pod.Strategy(*strategyFlag))).Host)
		})
	}
	for _, moment := range sample(slices.Clone(recovery.PartitionMoments), 1) {
		t.Run("leader change at "+moment, func(t *testing.T) { changeLeader(t, directory, moment) })
	}
}

// changeLeader kills the leader of the directory in the middle of a move. The
// other members elect another one, and nobody else notices.
func changeLeader(t *testing.T, directory *etcdCluster, moment string) {
	s := newScene(t)
	point := pointOf(t, moment)
	s.begin(point, "stop")
	leader := directory.leader(t)
	directory.signal(t, leader, unix.SIGKILL)
	resume(t, nodeOf(point))
	s.await(0)
	if now := directory.leader(t); now == leader {
		t.Errorf("the leader is %s, which was killed", now.name)
	}
	directory.restart(t, leader)
	directory.awaitHealthy(t, leader)
	s.requireTold(s.requireOutcome(recovery.Goes).Host)
}

// pointOf is where to stop a daemon at a moment.
func pointOf(t *testing.T, moment string) string {
	t.Helper()
	for _, m := range recovery.Moments {
		if m.Name == moment {
			return m.Point(recovery.Directory)
		}
	}
	t.Fatalf("there is no moment %q", moment)
	return ""
}
