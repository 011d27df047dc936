package pod

import (
	"fmt"
	"path"
	"strings"
	"time"
)

// Phase is where a pod is in its life.
type Phase string

const (
	// PhaseCreating: the name, address and label are taken, the pod is being built.
	PhaseCreating Phase = "creating"
	// PhaseRunning: the main command runs.
	PhaseRunning Phase = "running"
	// PhaseMoving: a move is under way; the pod still runs (or is frozen for
	// a moment) on the host its binding names.
	PhaseMoving Phase = "moving"
	// PhaseStopped: the main command ended; the writable layer is kept.
	PhaseStopped Phase = "stopped"
	// PhaseFailed: it could not be created or was lost; Reason says why.
	PhaseFailed Phase = "failed"
)

// Live reports whether a pod in this phase has processes.
func (p Phase) Live() bool { return p == PhaseRunning || p == PhaseMoving }

// VolumePolicy says what becomes of a volume when the pod moves: the resource
// binding table of the code-migration literature (move, global reference,
// copy, rebind).
type VolumePolicy string

const (
	// VolumeMove carries the content to the target, where the pod's copy is
	// then the one that counts. A named volume is removed from the source; a
	// path of the host's, which others may use, is left as it is.
	VolumeMove VolumePolicy = "move"
	// VolumeShare expects the same content at the same path on every host (NFS and its like).
	VolumeShare VolumePolicy = "share"
	// VolumeCopy carries the content and leaves the source's as it is.
	VolumeCopy VolumePolicy = "copy"
	// VolumeRebind uses whatever the target has at that path.
	VolumeRebind VolumePolicy = "rebind"
)

// Volume is a directory or file of the host that the pod sees.
type Volume struct {
	// Source is an absolute path on the host, or a name, which stands for a
	// directory that podd keeps for the pod.
	Source string `json:"source"`
	// Destination is an absolute path in the pod.
	Destination string `json:"destination"`
	// Policy is what a move does with it. Empty means VolumeMove for a named
	// volume and VolumeShare for a path.
	Policy VolumePolicy `json:"policy"`
	// ReadOnly refuses writes from inside the pod.
	ReadOnly bool `json:"readOnly,omitempty"`
}

// ParseVolume reads SRC:DST[:OPTION[,OPTION...]], an option being a policy or
// "ro". The error wraps ErrInvalid.
func ParseVolume(s string) (Volume, error) {
	parts := strings.Split(s, ":")
	if len(parts) < 2 || len(parts) > 3 || parts[0] == "" || parts[1] == "" {
		return Volume{}, fmt.Errorf("%w: volume %q: want SOURCE:DESTINATION[:POLICY]", ErrInvalid, s)
	}
	v := Volume{Source: parts[0], Destination: parts[1]}
	if len(parts) == 3 {
		for _, option := range strings.Split(parts[2], ",") {
			switch policy := VolumePolicy(option); policy {
			case VolumeMove, VolumeShare, VolumeCopy, VolumeRebind:
				v.Policy = policy
			default:
				if option != "ro" {
					return Volume{}, fmt.Errorf("%w: volume %q: unknown option %q: want move, share, copy, rebind or ro", ErrInvalid, s, option)
				}
				v.ReadOnly = true
			}
		}
	}
	return v, v.normalize()
}

func (v *Volume) normalize() error {
	if !path.IsAbs(v.Destination) || path.Clean(v.Destination) == "/" {
		return fmt.Errorf("%w: volume destination %q: want an absolute path other than /", ErrInvalid, v.Destination)
	}
	v.Destination = path.Clean(v.Destination)
	if v.Named() {
		if err := ValidateName(v.Source); err != nil {
			return fmt.Errorf("volume source: %w", err)
		}
	} else {
		v.Source = path.Clean(v.Source)
	}
	switch v.Policy {
	case VolumeMove, VolumeShare, VolumeCopy, VolumeRebind:
	case "":
		v.Policy = VolumeShare
		if v.Named() {
			v.Policy = VolumeMove
		}
	default:
		return fmt.Errorf("%w: volume %s: unknown policy %q: want move, share, copy or rebind", ErrInvalid, v.Destination, v.Policy)
	}
	return nil
}

// Named reports whether the source is a name that podd keeps a directory for.
func (v Volume) Named() bool { return !path.IsAbs(v.Source) }

// Spec is what the user asked for. It does not change over a pod's life and
// travels with it.
type Spec struct {
	// Name is the pod's name and its DNS label.
	Name string `json:"name"`
	// Image is "host", "dir:/path" or the name of an imported image.
	Image string `json:"image"`
	// ImageDigest pins the content of Image ("sha256:..."); podd fills it in.
	// Empty for "host".
	ImageDigest string `json:"imageDigest,omitempty"`
	// Command is the main command. Empty means the image's own.
	Command []string `json:"command"`
	// Env holds KEY=VALUE pairs, added to the image's.
	Env []string `json:"env,omitempty"`
	// User is NAME|UID[:GROUP|GID] as in the pod's own /etc/passwd. Empty
	// means the image's, else root.
	User string `json:"user,omitempty"`
	// WorkDir is the working directory in the pod. Empty means the image's, else /.
	WorkDir string `json:"workDir,omitempty"`
	// Volumes are the host's directories the pod sees.
	Volumes []Volume `json:"volumes,omitempty"`
	// MemoryBytes limits memory; 0 means no limit.
	MemoryBytes int64 `json:"memoryBytes,omitempty"`
	// MilliCPUs limits processor time, in thousandths of one; 0 means no limit.
	MilliCPUs int64 `json:"milliCPUs,omitempty"`
	// PIDs limits the number of processes and threads; 0 means the default.
	PIDs int64 `json:"pids,omitempty"`
	// TTY gives the main command a terminal.
	TTY bool `json:"tty,omitempty"`
	// Stdin keeps the main command's standard input open for attach.
	Stdin bool `json:"stdin,omitempty"`
	// NoNewPrivileges sets no_new_privs: set-user-ID programs gain nothing.
	NoNewPrivileges bool `json:"noNewPrivileges,omitempty"`
	// RemoveOnExit removes the pod when its main command ends.
	RemoveOnExit bool `json:"removeOnExit,omitempty"`
}

// DefaultPIDs is the limit on processes and threads where none is asked for
// (podman's default).
const DefaultPIDs = 2048

// Validate checks everything that can be checked without a host and fills in
// defaults. The error wraps ErrInvalid.
func (s *Spec) Validate() error {
	if err := ValidateName(s.Name); err != nil {
		return err
	}
	if s.Image == "" {
		s.Image = "host"
	}
	if s.Image == "host" && len(s.Command) == 0 {
		return fmt.Errorf("%w: no command given, and image %q has none of its own", ErrInvalid, s.Image)
	}
	if dir, ok := strings.CutPrefix(s.Image, "dir:"); ok && !path.IsAbs(dir) {
		return fmt.Errorf("%w: image %q: want dir: and an absolute path", ErrInvalid, s.Image)
	}
	for _, kv := range s.Env {
		if name, _, ok := strings.Cut(kv, "="); !ok || name == "" {
			return fmt.Errorf("%w: environment %q: want NAME=VALUE", ErrInvalid, kv)
		}
	}
	if s.WorkDir != "" && !path.IsAbs(s.WorkDir) {
		return fmt.Errorf("%w: working directory %q: want an absolute path", ErrInvalid, s.WorkDir)
	}
	if s.MemoryBytes < 0 || s.MilliCPUs < 0 || s.PIDs < 0 {
		return fmt.Errorf("%w: a limit can't be negative", ErrInvalid)
	}
	const minMemory = 6 << 20 // below this not even the init starts reliably
	if s.MemoryBytes > 0 && s.MemoryBytes < minMemory {
		return fmt.Errorf("%w: memory limit of %d bytes: want at least %d (6m)", ErrInvalid, s.MemoryBytes, minMemory)
	}
	if s.PIDs == 0 {
		s.PIDs = DefaultPIDs
	}
	seen := map[string]bool{}
	for i := range s.Volumes {
		if err := s.Volumes[i].normalize(); err != nil {
			return err
		}
		if d := s.Volumes[i].Destination; seen[d] {
			return fmt.Errorf("%w: two volumes at %s", ErrInvalid, d)
		} else {
			seen[d] = true
		}
	}
	return nil
}

// Pod is the directory's record of one pod.
type Pod struct {
	Spec    Spec    `json:"spec"`
	Binding Binding `json:"binding"`
	Phase   Phase   `json:"phase"`
	// TriedEpoch is the highest epoch that any move of the pod was given,
	// committed or not. An epoch is never given twice.
	TriedEpoch Epoch `json:"triedEpoch,omitempty"`
	// Reason explains PhaseFailed, and PhaseStopped if the main command did not
	// end by itself.
	Reason string `json:"reason,omitempty"`
	// Checkpoint is, in PhaseStopped, the ID of the checkpoint file that the pod
	// was written into and can go on from; empty when it just ended.
	Checkpoint string `json:"checkpoint,omitempty"`
	// Continues is, in PhaseCreating, the ended incarnation that a restore is
	// to replace. It comes back should the restore fail.
	Continues *Ended `json:"continues,omitempty"`
	// ExitCode is the main command's, valid in PhaseStopped: 0 to 255,
	// 128+n for signal n.
	ExitCode int `json:"exitCode,omitempty"`
	// Move is the ID of the move under way, empty when there is none.
	Move string `json:"move,omitempty"`
	// CreatedAt, StartedAt and StoppedAt are wall-clock times; zero when not yet.
	CreatedAt time.Time `json:"createdAt"`
	StartedAt time.Time `json:"startedAt,omitzero"`
	StoppedAt time.Time `json:"stoppedAt,omitzero"`
}

// Ended is an incarnation of a pod that has no processes any more.
type Ended struct {
	Binding Binding `json:"binding"`
	// Phase is PhaseStopped or PhaseFailed.
	Phase Phase `json:"phase"`
}

// Name is the pod's name.
func (p *Pod) Name() string { return p.Spec.Name }
