package pager

import (
	"log/slog"
	"time"
)

// Options say what a pager does. It keeps them in its directory.
type Options struct {
	// Dir is the pager's own directory, on tmpfs and for root alone. It exists.
	Dir string `json:"dir"`
	// Executable is the program to run with the arguments "pager" and Dir; its
	// main function calls Main.
	Executable string `json:"executable"`
	// FreezerDir is the directory of the pod's cgroup that can be frozen: in
	// version 1 the one below the freezer controller. It need not exist yet.
	FreezerDir string `json:"freezerDir"`
	// StateDir is podd's, with the credentials.
	StateDir string `json:"stateDir"`
	// Source is the name of the host that has the memory, Addresses those
	// (address:port) of its API, Path what to ask it for.
	Source    string   `json:"source"`
	Addresses []string `json:"addresses"`
	Path      string   `json:"path"`
	// RevokedFile is written by WriteRevoked, whenever that changes; none if empty.
	RevokedFile string `json:"revokedFile,omitempty"`
	// MaxBytes bounds what the source can store here at a time; 0 leaves it to
	// package reserve.
	MaxBytes int64 `json:"maxBytes,omitempty"`

	Log *slog.Logger `json:"-"`
}

// State says how far a pager is.
type State string

const (
	// StateWaiting: the pod does not run yet.
	StateWaiting State = "waiting"
	// StateFilling: the pod runs, and does not have all of its memory.
	StateFilling State = "filling"
	// StateStalled: the pod is frozen until its memory can be filled again.
	StateStalled State = "stalled"
	// StateComplete: the pod has all of its memory, or has ended.
	StateComplete State = "complete"
	// StateLost: the pod can never have all of its memory. It is frozen.
	StateLost State = "lost"
)

// Status is how far a pager is. Sizes are in bytes.
type Status struct {
	State State `json:"state"`
	// Cause says why it is stalled or lost.
	Cause string `json:"cause,omitempty"`
	// Total is what has to be filled in, as far as it is known; Missing is the part
	// of it that is not on this host.
	Total   int64 `json:"total"`
	Missing int64 `json:"missing"`
	// Filled is what was filled in. A page of a child counts once more; one that
	// the pod has given up does not count.
	Filled int64 `json:"filled"`
	// Faults is how often the pod had to wait for a page, WorstFault the longest of
	// these waits.
	Faults     int64         `json:"faults"`
	WorstFault time.Duration `json:"worstFault"`
	// Children is the number of processes that were made since and lack memory.
	Children int64 `json:"children"`
	// Connected says that there is a connection to the source, Disconnected why
	// not.
	Connected    bool   `json:"connected"`
	Disconnected string `json:"disconnected,omitempty"`
	// Restarts is how often the pager died and was replaced.
	Restarts int `json:"restarts"`
}
