package pod

import (
	"fmt"
	"strings"
	"time"
)

// Strategy is how a move carries the memory of a pod.
type Strategy string

const (
	// StrategyAuto has podd choose one of the others for every move, from the
	// size of the memory, how fast the pod writes to it, the link and how long
	// the pod may be frozen.
	StrategyAuto Strategy = "auto"
	// StrategyStopCopy carries all memory while the pod is frozen.
	StrategyStopCopy Strategy = "stop-copy"
	// StrategyPreCopy carries memory while the pod runs on the source, again and
	// again what has changed, and the rest while it is frozen.
	StrategyPreCopy Strategy = "pre-copy"
	// StrategyPostCopy carries what is left of the memory when the pod runs on
	// the target: first what it waits for. The source keeps it until then.
	StrategyPostCopy Strategy = "post-copy"
	// StrategyCheckpointServer carries memory by way of the session proxy, for
	// hosts that can't reach each other.
	StrategyCheckpointServer Strategy = "checkpoint-server"
)

// Strategies lists all that can be asked for.
var Strategies = []Strategy{StrategyAuto, StrategyStopCopy, StrategyPreCopy, StrategyPostCopy, StrategyCheckpointServer}

// ParseStrategy reads the name of a strategy; an empty one is StrategyAuto. The
// error wraps ErrInvalid.
func ParseStrategy(name string) (Strategy, error) {
	if name == "" {
		return StrategyAuto, nil
	}
	names := make([]string, 0, len(Strategies))
	for _, s := range Strategies {
		if name == string(s) {
			return s, nil
		}
		names = append(names, string(s))
	}
	last := len(names) - 1
	return "", fmt.Errorf("%w: unknown strategy %q: want %s or %s", ErrInvalid, name, strings.Join(names[:last], ", "), names[last])
}

// StageMemory is the stage of a post-copy move in which the pod runs on the
// target and the rest of its memory follows. Other moves don't have it.
const StageMemory Stage = "memory"

// Arrival is how memory comes, or has come, that follows a pod which already
// runs: what its target says of it.
type Arrival struct {
	// Missing is how much has yet to come, in bytes of memory.
	Missing int64 `json:"missing"`
	// Stalled is why the pod stands still until more comes; empty when it runs.
	Stalled string `json:"stalled,omitempty"`
	// Faults is how often a process of the pod waited for memory, WorstFault the
	// longest wait.
	Faults     int64         `json:"faults"`
	WorstFault time.Duration `json:"worstFault"`
	// Duration is from when the pod ran until all had come; 0 until then.
	Duration time.Duration `json:"duration,omitempty"`
}
