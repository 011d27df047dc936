package cli

import (
	"cmp"
	"fmt"
	"math"
	"time"

	"github.com/docker/go-units"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// The views are the documents that -o json and yaml print. Their keys do not
// change: scripts depend on them.

// podView is a pod: what the user asked for, and where it is now.
type podView struct {
	Name   string    `json:"name"`
	Phase  pod.Phase `json:"phase"`
	Reason string    `json:"reason,omitempty"`
	// ExitCode is present when the main command has ended by itself.
	ExitCode *int   `json:"exitCode,omitempty"`
	Host     string `json:"host"`
	bindingView
	// Move is the ID of the move under way.
	Move string `json:"move,omitempty"`
	// HeldFor is how long the proxy has queued the pod's packets; absent unless
	// it does.
	HeldFor *milliseconds `json:"heldForMs,omitempty"`
	// Arrival is present while memory is to come that follows the pod after a move.
	Arrival   *arrivalView `json:"arrival,omitempty"`
	CreatedAt time.Time    `json:"createdAt"`
	StartedAt time.Time    `json:"startedAt,omitzero"`
	StoppedAt time.Time    `json:"stoppedAt,omitzero"`
	Spec      pod.Spec     `json:"spec"`
}

// bindingView is a binding without the host's name.
type bindingView struct {
	VirtualAddress  string    `json:"virtualAddress"`
	PublicAddress   string    `json:"publicAddress"`
	PhysicalAddress string    `json:"physicalAddress"`
	Label           pod.Label `json:"label"`
	Epoch           pod.Epoch `json:"epoch"`
}

func viewBinding(b *poddv1.Binding) bindingView {
	return bindingView{
		VirtualAddress: b.GetVirtualAddress(), PublicAddress: b.GetPublicAddress(), PhysicalAddress: b.GetPhysicalAddress(),
		Label: pod.Label(b.GetLabel()), Epoch: pod.Epoch(b.GetEpoch()),
	}
}

func viewPod(message *poddv1.Pod) podView {
	p := api.PodFromProto(message)
	v := podView{
		Name: p.Name(), Phase: p.Phase, Reason: p.Reason, Host: p.Binding.Host, bindingView: viewBinding(message.GetBinding()),
		Move: p.Move, CreatedAt: p.CreatedAt, StartedAt: p.StartedAt, StoppedAt: p.StoppedAt, Spec: p.Spec,
	}
	// One that was written into a file has not ended by itself.
	if p.Phase == pod.PhaseStopped && p.Reason == "" {
		v.ExitCode = &p.ExitCode
	}
	if message.GetHeld() {
		held := milliseconds(message.GetHeldFor().AsDuration())
		v.HeldFor = &held
	}
	v.Arrival = viewArrival(message.GetArrival())
	return v
}

// held is since when the pod's packets queue; empty when they don't.
func (v podView) held() string {
	if v.HeldFor == nil {
		return ""
	}
	return v.HeldFor.String()
}

// phase is the phase as tables show it.
func (v podView) phase() string {
	switch {
	case v.ExitCode != nil:
		return fmt.Sprintf("%s (%d)", v.Phase, *v.ExitCode)
	case v.Arrival != nil && v.Arrival.Stalled != "":
		return fmt.Sprintf("%s (stalled)", v.Phase)
	}
	return string(v.Phase)
}

// hostView is a host of the cluster.
type hostView struct {
	Name            string `json:"name"`
	Alive           bool   `json:"alive"`
	PhysicalAddress string `json:"physicalAddress"`
	APIAddress      string `json:"apiAddress"`
	// Pods is the number of pods that run on it.
	Pods        int       `json:"pods"`
	Kernel      string    `json:"kernel"`
	CRIU        string    `json:"criu"`
	CPU         string    `json:"cpu"`
	CPUs        int       `json:"cpus"`
	MemoryBytes int64     `json:"memoryBytes"`
	Version     string    `json:"version"`
	StartedAt   time.Time `json:"startedAt,omitzero"`
}

func viewHost(h *poddv1.Host) hostView {
	v := hostView{
		Name: h.GetName(), Alive: h.GetAlive(), PhysicalAddress: h.GetPhysicalAddress(), APIAddress: h.GetApiAddress(),
		Pods: int(h.GetPods()), Kernel: h.GetKernel(), CRIU: criuVersion(h.GetCriuVersion()), CPU: h.GetCpu(), CPUs: int(h.GetCpus()),
		MemoryBytes: h.GetMemoryBytes(), Version: h.GetVersion(),
	}
	if h.GetStartedAt() != nil {
		v.StartedAt = h.GetStartedAt().AsTime()
	}
	return v
}

// state is alive or down.
func (v hostView) state() string {
	if v.Alive {
		return "alive"
	}
	return "down"
}

// criuVersion writes CRIU's version number MMmmss: 40201 is 4.2.1.
func criuVersion(number int32) string {
	if number <= 0 {
		return ""
	}
	text := fmt.Sprintf("%d.%d", number/10000, number/100%100)
	if patch := number % 100; patch > 0 {
		text += fmt.Sprintf(".%d", patch)
	}
	return text
}

// imageView is an image on one host.
type imageView struct {
	Name      string    `json:"name"`
	Digest    string    `json:"digest"`
	SizeBytes int64     `json:"sizeBytes"`
	Layers    int       `json:"layers"`
	Host      string    `json:"host"`
	CreatedAt time.Time `json:"createdAt,omitzero"`
}

func viewImage(i *poddv1.Image) imageView {
	v := imageView{Name: i.GetName(), Digest: i.GetDigest(), SizeBytes: i.GetSize(), Layers: int(i.GetLayers()), Host: i.GetHost()}
	if i.GetCreatedAt() != nil {
		v.CreatedAt = i.GetCreatedAt().AsTime()
	}
	return v
}

// moveView is a move and, when it is done, its receipt.
type moveView struct {
	ID          string        `json:"id"`
	Pod         string        `json:"pod"`
	Source      string        `json:"source"`
	Target      string        `json:"target"`
	SourceEpoch pod.Epoch     `json:"sourceEpoch"`
	State       pod.MoveState `json:"state"`
	Stage       pod.Stage     `json:"stage"`
	// Strategy is what was asked for, Chosen how the memory is carried, and Reason
	// why podd chose that.
	Strategy pod.Strategy `json:"strategy"`
	Chosen   pod.Strategy `json:"chosen,omitempty"`
	Reason   string       `json:"reason,omitempty"`
	// MemoryPending says that the source keeps memory that the pod still needs.
	MemoryPending bool `json:"memoryPending"`
	// Arrival is how memory came that followed the pod.
	Arrival     *arrivalView `json:"arrival,omitempty"`
	Error       string       `json:"error,omitempty"`
	FailedStage pod.Stage    `json:"failedStage,omitempty"`
	StartedAt   time.Time    `json:"startedAt"`
	EndedAt     time.Time    `json:"endedAt,omitzero"`
	// Next is the binding that the commit puts in place.
	Next    bindingView  `json:"next"`
	Receipt *receiptView `json:"receipt,omitempty"`
}

// receiptView is what a move measured; see pod.Receipt.
type receiptView struct {
	Stages            []stageView  `json:"stages"`
	Freeze            milliseconds `json:"freezeMs"`
	Excision          milliseconds `json:"excisionMs"`
	Insertion         milliseconds `json:"insertionMs"`
	Total             milliseconds `json:"totalMs"`
	MemoryBytes       int64        `json:"memoryBytes"`
	Pages             int64        `json:"pages"`
	PresyncFileBytes  int64        `json:"presyncFileBytes"`
	FrozenFileBytes   int64        `json:"frozenFileBytes"`
	ImageBytes        int64        `json:"imageBytes"`
	CarriedBytes      int64        `json:"carriedBytes"`
	PrecopyBytes      int64        `json:"precopyBytes"`
	FrozenMemoryBytes int64        `json:"frozenMemoryBytes"`
	LateMemoryBytes   int64        `json:"lateMemoryBytes"`
	Passes            int          `json:"passes"`
	Predicted         milliseconds `json:"predictedMs"`
	Processes         int          `json:"processes"`
	Connections       int          `json:"connections"`
}

// arrivalView is how memory comes that follows a pod; see pod.Arrival.
type arrivalView struct {
	Missing    int64        `json:"missingBytes"`
	Stalled    string       `json:"stalled,omitempty"`
	Faults     int64        `json:"faults"`
	WorstFault milliseconds `json:"worstFaultMs"`
	Duration   milliseconds `json:"durationMs"`
}

func viewArrival(a *poddv1.Arrival) *arrivalView {
	if a == nil {
		return nil
	}
	return &arrivalView{
		Missing: a.GetMissing(), Stalled: a.GetStalled(), Faults: a.GetFaults(), WorstFault: milliseconds(a.GetWorstFault().AsDuration()),
		Duration: milliseconds(a.GetDuration().AsDuration()),
	}
}

// String is how memory comes, for people.
func (a *arrivalView) String() string {
	text := formatBytes(a.Missing) + " still to come"
	if a.Stalled != "" {
		text += "; the pod stands still: " + a.Stalled
	}
	return text
}

// stageView is one stage of a receipt.
type stageView struct {
	Stage    pod.Stage    `json:"stage"`
	Duration milliseconds `json:"durationMs"`
	Bytes    int64        `json:"bytes"`
}

func viewMove(m *poddv1.Move) moveView {
	move := api.MoveFromProto(m)
	v := moveView{
		ID: move.ID, Pod: move.Pod, Source: move.Source, Target: move.Target, SourceEpoch: move.SourceEpoch,
		State: move.State, Stage: move.Stage, Error: move.Error, FailedStage: move.FailedStage,
		StartedAt: move.StartedAt, EndedAt: move.EndedAt, Next: viewBinding(m.GetNext()),
		Strategy: cmp.Or(move.Strategy, pod.StrategyStopCopy), Chosen: move.Chosen, Reason: move.Reason,
		MemoryPending: move.MemoryPending, Arrival: viewArrival(m.GetArrival()),
	}
	if r := move.Receipt; r != nil {
		v.Receipt = &receiptView{
			Stages: []stageView{}, Freeze: milliseconds(r.Freeze), Excision: milliseconds(r.Excision), Insertion: milliseconds(r.Insertion),
			Total: milliseconds(r.Total), MemoryBytes: r.MemoryBytes, Pages: r.Pages, PresyncFileBytes: r.PresyncFileBytes,
			FrozenFileBytes: r.FrozenFileBytes, ImageBytes: r.ImageBytes, Processes: r.Processes, Connections: r.Connections,
			CarriedBytes: r.CarriedBytes, PrecopyBytes: r.PrecopyBytes, FrozenMemoryBytes: r.FrozenMemoryBytes,
			LateMemoryBytes: r.LateMemoryBytes, Passes: r.Passes, Predicted: milliseconds(r.Predicted),
		}
		for _, s := range r.Stages {
			v.Receipt.Stages = append(v.Receipt.Stages, stageView{s.Stage, milliseconds(s.Duration), s.Bytes})
		}
	}
	return v
}

// milliseconds is a duration that documents show as a number of milliseconds
// with three decimals.
type milliseconds time.Duration

func (m milliseconds) MarshalJSON() ([]byte, error) {
	ms := math.Round(float64(m)/float64(time.Microsecond)) / 1000
	return fmt.Appendf(nil, "%v", ms), nil
}

func (m milliseconds) String() string { return formatDuration(time.Duration(m)) }

// formatDuration writes a duration for people: milliseconds below a second,
// seconds below a minute.
func formatDuration(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
	case d < 100*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

// formatBytes writes a size for people, in binary units.
func formatBytes(n int64) string { return units.CustomSize("%.4g %s", float64(n), 1024, byteUnits) }

var byteUnits = []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}

// age is how long ago t was; empty for no time.
func age(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return units.HumanDuration(time.Since(t)) + " ago"
}
