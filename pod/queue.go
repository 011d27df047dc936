package pod

// What a move is before it begins: more moves of a host at once than it allows
// wait for each other.
const (
	// StageQueued is what a move that waits shows in place of a stage.
	StageQueued Stage = "queued"
	// MoveQueued: nothing was begun, the pod is as if it was not to be moved.
	// It changes once, to MoveRunning or MoveAborted.
	MoveQueued MoveState = "queued"
)

// DefaultMaxMoves is how many moves out of and into a host go on at once where
// its configuration does not say.
const DefaultMaxMoves = 4

// MoveLimit is how many moves out of and into the host go on at once.
func (h Host) MoveLimit() int {
	if h.MaxMoves == 0 {
		return DefaultMaxMoves
	}
	return h.MaxMoves
}

// Undoing reports whether the move was aborted and its source has yet to let
// the pod go on. The pod is the move's until then.
func (m *Move) Undoing() bool { return m.State == MoveAborted && m.EndedAt.IsZero() }
