//go:build e2e

package e2e

import "time"

// outcome is where the pod runs in the end.
type outcome string

const (
	stays   outcome = "on the source"
	goes    outcome = "on the target"
	settled outcome = "where the directory says" // on one of them: two things race
)

// faultCase is one cell of the table in ARCHITECTURE.md: what happens when this
// goes wrong at that stage, in a move from a to b.
type faultCase struct {
	// point and action are what package fault is told; the actions after that
	// are the test's own, carried out while the daemon is stopped at the point:
	//
	//	pause   it goes on after pauseTime
	//	hang    it goes on only when the other side has given up
	//	cut     the hosts lose each other
	//	isolate the daemon's host loses everybody
	//	term    it is told to end, and is started again
	point, action string
	outcome       outcome
	// usual is part of the smaller selection.
	usual bool
}

// pauseTime is how long a paused daemon stands still: less than the lease by
// which the others know that it is alive.
const pauseTime = 5 * time.Second

// faultTable is the table of recovery. Before the commit every failure leaves
// the pod where it was; after it the pod is the target's, come what may.
var faultTable = []faultCase{
	{"source:preflight", "error", stays, false},
	{"source:preflight", "kill", stays, true},
	{"source:preflight", "pause", goes, false},
	{"source:reserve", "error", stays, false},
	{"source:reserve", "kill", stays, true},
	{"source:reserve", "pause", goes, false},
	{"source:reserve", "sever", stays, false},
	{"source:presync", "error", stays, false},
	{"source:presync", "kill", stays, true},
	{"source:presync", "pause", goes, false},
	{"source:presync", "sever", stays, true},
	{"source:presync", "full", stays, false},
	{"source:presync", "hang", stays, false},
	{"source:presync", "cut", stays, false},
	{"source:hold", "error", stays, false},
	{"source:hold", "kill", stays, true},
	{"source:hold", "pause", goes, false},
	{"source:hold", "sever", stays, false},
	{"source:freeze", "error", stays, true},
	{"source:freeze", "kill", stays, true},
	{"source:freeze", "pause", goes, false},
	{"source:freeze", "sever", stays, false},
	{"source:dump", "error", stays, false},
	{"source:dump", "kill", stays, true},
	{"source:dump", "pause", goes, false},
	{"source:dump", "sever", stays, false},
	{"source:dump", "full", stays, false},
	{"source:dump", "hang", stays, false},
	{"source:dump", "cut", stays, false},
	{"source:dump", "term", stays, true},
	{"source:transfer", "error", stays, false},
	{"source:transfer", "kill", stays, true},
	{"source:transfer", "pause", goes, false},
	{"source:transfer", "sever", stays, false},
	{"source:restore", "error", stays, false},
	{"source:restore", "kill", stays, true},
	{"source:restore", "pause", goes, false},
	{"source:restore", "sever", stays, false},
	{"source:restore-asked", "error", settled, false},
	{"source:restore-asked", "kill", settled, true},
	{"source:restore-asked", "pause", goes, false},
	{"source:restore-asked", "sever", settled, true},
	{"source:restore-asked", "hang", goes, false},
	{"source:restore-asked", "isolate", goes, false},
	{"source:commit", "error", settled, false},
	{"source:commit", "kill", settled, true},
	{"source:commit", "pause", goes, false},
	{"source:commit", "sever", settled, true},
	{"source:committed", "error", goes, false},
	{"source:committed", "kill", goes, true},
	{"source:committed", "pause", goes, false},
	{"source:committed", "sever", goes, false},
	{"source:release", "kill", goes, true},
	{"source:release", "pause", goes, false},

	{"target:preflight", "error", stays, false},
	{"target:preflight", "kill", stays, true},
	{"target:preflight", "pause", goes, false},
	{"target:reserve", "error", stays, false},
	{"target:reserve", "kill", stays, true},
	{"target:reserve", "pause", goes, false},
	{"target:reserve", "sever", stays, false},
	{"target:reserve", "full", stays, false},
	{"target:reserve", "hang", stays, false},
	{"target:presync", "error", stays, false},
	{"target:presync", "kill", stays, true},
	{"target:presync", "pause", goes, false},
	{"target:presync", "sever", stays, false},
	{"target:presync", "full", stays, true},
	{"target:dump", "error", stays, false},
	{"target:dump", "kill", stays, true},
	{"target:dump", "pause", goes, false},
	{"target:dump", "sever", stays, false},
	{"target:dump", "full", stays, true},
	{"target:dump", "hang", stays, false},
	{"target:transfer", "error", stays, true},
	{"target:transfer", "kill", stays, true},
	{"target:transfer", "pause", goes, false},
	{"target:transfer", "sever", stays, false},
	{"target:transfer", "full", stays, false},
	{"target:restore", "error", stays, true},
	{"target:restore", "kill", stays, true},
	{"target:restore", "pause", goes, false},
	{"target:restore", "sever", settled, false},
	{"target:restore", "full", stays, false},
	{"target:restore", "cut", settled, false},
	{"target:commit", "error", stays, false},
	{"target:commit", "kill", stays, true},
	{"target:commit", "pause", goes, true},
	{"target:commit", "sever", settled, false},
	{"target:commit", "hang", stays, true},
	{"target:commit", "cut", settled, false},
	{"target:commit", "isolate", stays, false},
	{"target:commit", "term", settled, false},
	{"target:committed", "error", goes, false},
	{"target:committed", "kill", goes, true},
	{"target:committed", "pause", goes, false},
	{"target:committed", "sever", goes, true},
	{"target:committed", "hang", goes, false},
	{"target:committed", "term", goes, true},
	{"target:release", "kill", goes, true},
	{"target:release", "pause", goes, false},
	{"target:release", "sever", goes, false},

	// podproxy has the directory, so with it goes the only one who can decide.
	{"proxy:hold", "kill", settled, true},
	{"proxy:hold", "pause", settled, true},
	{"proxy:release", "kill", goes, true},
	{"proxy:release", "pause", goes, false},
}
