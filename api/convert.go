package api

import (
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	poddv1 "podd/api/podd/v1"
	"podd/pod"
)

// timestamp maps the zero time to an absent field.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}

// address maps the invalid address to the empty string.
func address(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// addressOf maps anything unreadable to the invalid address; the receiver
// checks validity where it matters.
func addressOf(s string) netip.Addr {
	a, _ := netip.ParseAddr(s)
	return a
}

// SpecToProto converts a specification for the wire.
func SpecToProto(s pod.Spec) *poddv1.PodSpec {
	out := &poddv1.PodSpec{
		Name: s.Name, Image: s.Image, ImageDigest: s.ImageDigest, Command: s.Command, Env: s.Env,
		User: s.User, WorkDir: s.WorkDir, MemoryBytes: s.MemoryBytes, MilliCpus: s.MilliCPUs, Pids: s.PIDs,
		Tty: s.TTY, Stdin: s.Stdin, NoNewPrivileges: s.NoNewPrivileges, RemoveOnExit: s.RemoveOnExit,
	}
	for _, v := range s.Volumes {
		out.Volumes = append(out.Volumes, &poddv1.Volume{
			Source: v.Source, Destination: v.Destination, Policy: string(v.Policy), ReadOnly: v.ReadOnly,
		})
	}
	return out
}

// SpecFromProto converts a specification from the wire. The caller validates it.
func SpecFromProto(s *poddv1.PodSpec) pod.Spec {
	out := pod.Spec{
		Name: s.GetName(), Image: s.GetImage(), ImageDigest: s.GetImageDigest(), Command: s.GetCommand(), Env: s.GetEnv(),
		User: s.GetUser(), WorkDir: s.GetWorkDir(), MemoryBytes: s.GetMemoryBytes(), MilliCPUs: s.GetMilliCpus(), PIDs: s.GetPids(),
		TTY: s.GetTty(), Stdin: s.GetStdin(), NoNewPrivileges: s.GetNoNewPrivileges(), RemoveOnExit: s.GetRemoveOnExit(),
	}
	for _, v := range s.GetVolumes() {
		out.Volumes = append(out.Volumes, pod.Volume{
			Source: v.GetSource(), Destination: v.GetDestination(), Policy: pod.VolumePolicy(v.GetPolicy()), ReadOnly: v.GetReadOnly(),
		})
	}
	return out
}

func bindingToProto(b pod.Binding) *poddv1.Binding {
	return &poddv1.Binding{
		VirtualAddress: address(b.Virtual), PublicAddress: address(b.Public), Host: b.Host,
		PhysicalAddress: address(b.Physical), Label: uint32(b.Label), Epoch: uint64(b.Epoch),
	}
}

func bindingFromProto(b *poddv1.Binding) pod.Binding {
	return pod.Binding{
		Virtual: addressOf(b.GetVirtualAddress()), Public: addressOf(b.GetPublicAddress()), Host: b.GetHost(),
		Physical: addressOf(b.GetPhysicalAddress()), Label: pod.Label(b.GetLabel()), Epoch: pod.Epoch(b.GetEpoch()),
	}
}

// PodToProto converts a pod's record for the wire.
func PodToProto(p *pod.Pod) *poddv1.Pod {
	return &poddv1.Pod{
		Spec: SpecToProto(p.Spec), Binding: bindingToProto(p.Binding), Phase: string(p.Phase), Reason: p.Reason,
		ExitCode: int32(p.ExitCode), Move: p.Move,
		CreatedAt: timestamp(p.CreatedAt), StartedAt: timestamp(p.StartedAt), StoppedAt: timestamp(p.StoppedAt),
	}
}

// PodFromProto converts a pod's record from the wire.
func PodFromProto(p *poddv1.Pod) *pod.Pod {
	return &pod.Pod{
		Spec: SpecFromProto(p.GetSpec()), Binding: bindingFromProto(p.GetBinding()), Phase: pod.Phase(p.GetPhase()), Reason: p.GetReason(),
		ExitCode: int(p.GetExitCode()), Move: p.GetMove(),
		CreatedAt: timeOf(p.GetCreatedAt()), StartedAt: timeOf(p.GetStartedAt()), StoppedAt: timeOf(p.GetStoppedAt()),
	}
}

// HostToProto converts a host's record for the wire; pods is the number of
// live pods on it.
func HostToProto(h *pod.Host, pods int) *poddv1.Host {
	return &poddv1.Host{
		Name: h.Name, PhysicalAddress: address(h.Physical), ApiAddress: h.API.String(), Kernel: h.Kernel,
		CriuVersion: int32(h.CRIU), Cpu: h.CPU, Version: h.Version, MemoryBytes: h.MemoryBytes, Cpus: int32(h.CPUs),
		StartedAt: timestamp(h.StartedAt), Alive: h.Alive, Pods: int32(pods),
	}
}

// BlockersToProto converts preflight's findings for the wire.
func BlockersToProto(blockers []pod.Blocker) []*poddv1.Blocker {
	var out []*poddv1.Blocker
	for _, b := range blockers {
		out = append(out, &poddv1.Blocker{
			Pid: int32(b.PID), Program: b.Program, FileDescriptor: int32(b.Descriptor), Problem: b.Problem, Remedy: b.Remedy,
		})
	}
	return out
}

// BlockersFromProto converts preflight's findings from the wire.
func BlockersFromProto(blockers []*poddv1.Blocker) []pod.Blocker {
	var out []pod.Blocker
	for _, b := range blockers {
		out = append(out, pod.Blocker{
			PID: int(b.GetPid()), Program: b.GetProgram(), Descriptor: int(b.GetFileDescriptor()), Problem: b.GetProblem(), Remedy: b.GetRemedy(),
		})
	}
	return out
}

// MoveToProto converts a move's journal entry for the wire.
func MoveToProto(m *pod.Move) *poddv1.Move {
	out := &poddv1.Move{
		Id: m.ID, Pod: m.Pod, Source: m.Source, Target: m.Target, SourceEpoch: uint64(m.SourceEpoch), State: string(m.State),
		Stage: string(m.Stage), Error: m.Error, FailedStage: string(m.FailedStage),
		StartedAt: timestamp(m.StartedAt), EndedAt: timestamp(m.EndedAt), Next: bindingToProto(m.Next),
		Strategy: string(m.Strategy), Chosen: string(m.Chosen), Reason: m.Reason, MemoryPending: m.MemoryPending,
	}
	if a := m.Arrival; a != nil {
		out.Arrival = &poddv1.Arrival{
			Missing: a.Missing, Stalled: a.Stalled, Faults: a.Faults, WorstFault: durationpb.New(a.WorstFault), Duration: durationpb.New(a.Duration),
		}
	}
	if r := m.Receipt; r != nil {
		out.Receipt = &poddv1.Receipt{
			Freeze: durationpb.New(r.Freeze), Excision: durationpb.New(r.Excision), Insertion: durationpb.New(r.Insertion),
			Total: durationpb.New(r.Total), MemoryBytes: r.MemoryBytes, Pages: r.Pages,
			PresyncFileBytes: r.PresyncFileBytes, FrozenFileBytes: r.FrozenFileBytes, ImageBytes: r.ImageBytes,
			Processes: int32(r.Processes), Connections: int32(r.Connections),
			CarriedBytes: r.CarriedBytes, PrecopyBytes: r.PrecopyBytes, FrozenMemoryBytes: r.FrozenMemoryBytes,
			LateMemoryBytes: r.LateMemoryBytes, Passes: int32(r.Passes), Predicted: durationpb.New(r.Predicted),
		}
		for _, s := range r.Stages {
			out.Receipt.Stages = append(out.Receipt.Stages, &poddv1.StageTime{
				Stage: string(s.Stage), Duration: durationpb.New(s.Duration), Bytes: s.Bytes,
			})
		}
	}
	return out
}

// MoveFromProto converts a move's journal entry from the wire.
func MoveFromProto(m *poddv1.Move) *pod.Move {
	out := &pod.Move{
		ID: m.GetId(), Pod: m.GetPod(), Source: m.GetSource(), Target: m.GetTarget(), SourceEpoch: pod.Epoch(m.GetSourceEpoch()),
		State: pod.MoveState(m.GetState()), Stage: pod.Stage(m.GetStage()), Error: m.GetError(), FailedStage: pod.Stage(m.GetFailedStage()),
		StartedAt: timeOf(m.GetStartedAt()), EndedAt: timeOf(m.GetEndedAt()), Next: bindingFromProto(m.GetNext()),
		Strategy: pod.Strategy(m.GetStrategy()), Chosen: pod.Strategy(m.GetChosen()), Reason: m.GetReason(), MemoryPending: m.GetMemoryPending(),
	}
	if a := m.GetArrival(); a != nil {
		out.Arrival = &pod.Arrival{
			Missing: a.GetMissing(), Stalled: a.GetStalled(), Faults: a.GetFaults(), WorstFault: a.GetWorstFault().AsDuration(),
			Duration: a.GetDuration().AsDuration(),
		}
	}
	if r := m.GetReceipt(); r != nil {
		out.Receipt = &pod.Receipt{
			Freeze: r.GetFreeze().AsDuration(), Excision: r.GetExcision().AsDuration(), Insertion: r.GetInsertion().AsDuration(),
			Total: r.GetTotal().AsDuration(), MemoryBytes: r.GetMemoryBytes(), Pages: r.GetPages(),
			PresyncFileBytes: r.GetPresyncFileBytes(), FrozenFileBytes: r.GetFrozenFileBytes(), ImageBytes: r.GetImageBytes(),
			Processes: int(r.GetProcesses()), Connections: int(r.GetConnections()),
			CarriedBytes: r.GetCarriedBytes(), PrecopyBytes: r.GetPrecopyBytes(), FrozenMemoryBytes: r.GetFrozenMemoryBytes(),
			LateMemoryBytes: r.GetLateMemoryBytes(), Passes: int(r.GetPasses()), Predicted: r.GetPredicted().AsDuration(),
		}
		for _, s := range r.GetStages() {
			out.Receipt.Stages = append(out.Receipt.Stages, pod.StageTime{
				Stage: pod.Stage(s.GetStage()), Duration: s.GetDuration().AsDuration(), Bytes: s.GetBytes(),
			})
		}
	}
	return out
}
