package pod

import (
	"fmt"
	"time"
)

// Stage is a step of a move, as in Xen's live migration. Its name appears in
// logs, the journal, the progress display and the receipt.
type Stage string

// The stages in order. Everything before StageCommit is undone on failure;
// from StageCommit on the move only goes forward.
const (
	StagePreflight Stage = "preflight"
	StageReserve   Stage = "reserve"
	StagePresync   Stage = "presync"
	StageHold      Stage = "hold"
	StageFreeze    Stage = "freeze"
	StageDump      Stage = "dump"
	StageTransfer  Stage = "transfer"
	StageRestore   Stage = "restore"
	StageCommit    Stage = "commit"
	StageRelease   Stage = "release"
)

// Stages lists the stages in order.
var Stages = []Stage{
	StagePreflight, StageReserve, StagePresync, StageHold, StageFreeze,
	StageDump, StageTransfer, StageRestore, StageCommit, StageRelease,
}

// MoveState is the outcome of a move so far. It changes once from
// MoveRunning to MoveCommitted or MoveAborted, by compare-and-swap, and from
// MoveCommitted to MoveDone.
type MoveState string

const (
	// MoveRunning: the source holds the pod; anything may still fail.
	MoveRunning MoveState = "running"
	// MoveCommitted: the target holds the pod; the source never runs again.
	MoveCommitted MoveState = "committed"
	// MoveDone: committed, and the source is cleaned.
	MoveDone MoveState = "done"
	// MoveAborted: the source holds the pod as if nothing had happened.
	MoveAborted MoveState = "aborted"
)

// Move is the directory's journal entry of one move.
type Move struct {
	ID     string `json:"id"`
	Pod    string `json:"pod"`
	Source string `json:"source"`
	Target string `json:"target"`
	// SourceEpoch is the incarnation that moves; the target's is higher.
	SourceEpoch Epoch `json:"sourceEpoch"`
	// Next is the binding that the commit puts in place.
	Next  Binding   `json:"next"`
	State MoveState `json:"state"`
	// Stage is the last one begun. Before a commit it is advisory: it
	// explains, the State decides.
	Stage Stage `json:"stage"`
	// Strategy is what was asked for, Chosen how the memory is carried, and
	// Reason why podd chose that. Chosen is empty until it is known.
	Strategy Strategy `json:"strategy,omitempty"`
	Chosen   Strategy `json:"chosen,omitempty"`
	Reason   string   `json:"reason,omitempty"`
	// MemoryPending says of a committed move that the source keeps memory which
	// the pod still needs on the target.
	MemoryPending bool `json:"memoryPending,omitempty"`
	// Arrival is nil unless memory follows the pod.
	Arrival *Arrival `json:"arrival,omitempty"`
	// Held asks the proxy to queue the pod's packets.
	Held bool `json:"held,omitempty"`
	// Turn grows from move to move: the order in which those wait that have to.
	Turn uint64 `json:"turn,omitempty"`
	// Error says why State is MoveAborted, and FailedStage where.
	Error       string    `json:"error,omitempty"`
	FailedStage Stage     `json:"failedStage,omitempty"`
	StartedAt   time.Time `json:"startedAt"`
	// EndedAt is zero while anything remains to be done: see Undoing.
	EndedAt time.Time `json:"endedAt,omitzero"`
	Receipt *Receipt  `json:"receipt,omitempty"`
}

// Receipt is what a finished move measured. Durations are nanoseconds in JSON.
type Receipt struct {
	Stages []StageTime `json:"stages"`
	// Freeze is how long no process of the pod ran: from the freeze on the
	// source until the target resumed.
	Freeze time.Duration `json:"freeze"`
	// Excision is from the freeze until the image is complete on the target,
	// Insertion from there until the pod runs.
	Excision  time.Duration `json:"excision"`
	Insertion time.Duration `json:"insertion"`
	// Total is from the request until the source is clean.
	Total time.Duration `json:"total"`
	// MemoryBytes and Pages crossed as memory, FileBytes as files (first the
	// presync, then the frozen difference), ImageBytes as CRIU's other images.
	MemoryBytes      int64 `json:"memoryBytes"`
	Pages            int64 `json:"pages"`
	PresyncFileBytes int64 `json:"presyncFileBytes"`
	FrozenFileBytes  int64 `json:"frozenFileBytes"`
	ImageBytes       int64 `json:"imageBytes"`
	// CarriedBytes is the size of the memory that podd carried itself, and not
	// CRIU. PrecopyBytes crossed for it in Passes passes while the pod ran,
	// FrozenMemoryBytes while it was frozen, and LateMemoryBytes when it ran on
	// the target.
	CarriedBytes      int64 `json:"carriedBytes,omitempty"`
	PrecopyBytes      int64 `json:"precopyBytes,omitempty"`
	FrozenMemoryBytes int64 `json:"frozenMemoryBytes,omitempty"`
	LateMemoryBytes   int64 `json:"lateMemoryBytes,omitempty"`
	Passes            int   `json:"passes,omitempty"`
	// Predicted is what Freeze was expected to be, before the freeze; 0 if
	// nothing was.
	Predicted time.Duration `json:"predicted,omitempty"`
	Processes int           `json:"processes"`
	// Connections is the number of established TCP connections carried.
	Connections int `json:"connections"`
}

// StageTime is how long one stage took and how many bytes it sent.
type StageTime struct {
	Stage    Stage         `json:"stage"`
	Duration time.Duration `json:"duration"`
	Bytes    int64         `json:"bytes,omitempty"`
}

// Blocker is one thing that can't be carried to another host.
type Blocker struct {
	// PID is the process as the pod sees it, 0 when it is not about one.
	PID int `json:"pid,omitempty"`
	// Program is its name (comm).
	Program string `json:"program,omitempty"`
	// Descriptor is the file descriptor, -1 when it is not about one.
	Descriptor int `json:"descriptor"`
	// Problem says what can't be carried, Remedy what to do about it.
	Problem string `json:"problem"`
	Remedy  string `json:"remedy"`
}

// String is one line for people.
func (b Blocker) String() string {
	var subject string
	if b.Program != "" {
		subject = fmt.Sprintf("%s (pid %d", b.Program, b.PID)
		if b.Descriptor >= 0 {
			subject += fmt.Sprintf(", descriptor %d", b.Descriptor)
		}
		subject += "): "
	}
	return fmt.Sprintf("%s%s: %s", subject, b.Problem, b.Remedy)
}
