//go:build e2e

package e2e

import (
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"podd/fault/recovery"
	"podd/lab"
	"podd/pod"
)

var (
	allFaults = flag.Bool("faults", false, "inject every fault of the tables, not only a sample")
	seedFlag  = flag.Uint64("seed", 0, "of what is chosen at random; 0 takes one by the clock")
)

const (
	// stopTime is how long a stopped daemon stands still: less than the lease
	// by which the others know that it is alive.
	stopTime = 5 * time.Second
	// cutTime is how long a node is cut off unless the move ends before: longer
	// than that lease and than anybody's patience.
	cutTime = 25 * time.Second
	// fullTime is how long a disk is full unless the move ends before.
	fullTime = 15 * time.Second
)

// seed is what everything is chosen by, in this run.
var seed = sync.OnceValue(func() uint64 {
	s := *seedFlag
	if s == 0 {
		s = uint64(time.Now().UnixNano()) % 1_000_000
	}
	fmt.Fprintf(os.Stdout, "what is chosen at random is chosen by -seed %d\n", s)
	return s
})

// sample chooses n of the cells of a table, or all.
func sample[T any](cells []T, n int) []T {
	if *allFaults {
		return cells
	}
	// Every table has a stream of its own, so that a choice does not depend on
	// what else is run.
	name := fnv.New64a()
	fmt.Fprint(name, cells[0])
	random := rand.New(rand.NewPCG(seed(), name.Sum64()))
	random.Shuffle(len(cells), func(i, j int) { cells[i], cells[j] = cells[j], cells[i] })
	return cells[:min(n, len(cells))]
}

// pass lets time pass.
func pass(d time.Duration) { <-time.After(d) }

// nodes is where the victims of the table are.
var nodes = map[recovery.Victim]string{
	recovery.Source: "a", recovery.Target: "b", recovery.Proxy: lab.Proxy, recovery.Directory: directoryNode,
}

// TestFaults makes cells of the table of recovery happen: all with -faults, else
// some of each fault.
func TestFaults(t *testing.T) {
	directory := directoryApart(t, 1)
	byFault := map[recovery.Fault][]recovery.Cell{}
	for _, c := range recovery.Cells() {
		byFault[c.Fault] = append(byFault[c.Fault], c)
	}
	few := map[recovery.Fault]int{recovery.Kill: 6, recovery.Stop: 1, recovery.Full: 3, recovery.Cut: 1}
	for _, f := range recovery.Faults {
		for _, c := range sample(byFault[f], few[f]) {
			t.Run(c.String(), func(t *testing.T) { runCell(t, directory, c) })
		}
	}
}

func runCell(t *testing.T, directory *etcdCluster, c recovery.Cell) {
	s := newScene(t)
	if c.Moment.Strategy != "" {
		s.flags = []string{"--strategy", string(c.Moment.Strategy)}
	}
	point := c.Moment.Point(c.Victim)
	s.begin(point, "stop")
	node, stopped := nodes[c.Victim], nodeOf(point)
	etcd := directory.members[0]
	switch c.Fault {
	case recovery.Kill:
		if c.Victim == recovery.Directory {
			directory.signal(t, etcd, unix.SIGKILL)
			resume(t, stopped)
			directory.restart(t, etcd)
			break
		}
		kill(t, node, unix.SIGKILL)
		if node != stopped {
			resume(t, stopped)
		}
		restart(t, node)
	case recovery.Stop:
		signal := func(sig unix.Signal) { kill(t, node, sig) }
		if c.Victim == recovery.Directory {
			signal = func(sig unix.Signal) { directory.signal(t, etcd, sig) }
		}
		signal(unix.SIGSTOP)
		t.Cleanup(func() { signal(unix.SIGCONT) })
		if node != stopped {
			resume(t, stopped)
		}
		pass(stopTime)
		signal(unix.SIGCONT)
	case recovery.Full:
		dirs := []string{etcd.dir}
		if c.Victim != recovery.Directory {
			dirs = disksOf(node)
		}
		free := fillDisks(t, dirs...)
		resume(t, stopped)
		s.await(fullTime)
		free()
		// A daemon may end when it can't write; it is started again then.
		if c.Victim != recovery.Directory {
			bringUp(t, node)
		} else if etcd.ended() {
			directory.restart(t, etcd)
		}
	case recovery.Cut:
		heal := isolate(t, node)
		resume(t, stopped)
		s.await(cutTime)
		heal()
	}
	after := s.requireOutcome(c.By(pod.Strategy(*strategyFlag)))
	// A source that is killed has nobody to tell it.
	if c.Victim != recovery.Source || c.Fault != recovery.Kill {
		s.requireTold(after.Host)
	}
}

// kill sends a daemon a signal.
func kill(t *testing.T, node string, signal unix.Signal) {
	t.Helper()
	if err := theLab.Kill(node, signal); err != nil {
		t.Error(err)
	}
}
