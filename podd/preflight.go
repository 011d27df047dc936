package podd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/api/podd/v1/poddv1connect"
	"podd/checkpoint"
	"podd/daemon"
	"podd/fault"
	"podd/pod"
	"podd/trust"
	"podd/version"
)

// moveCheck is preflight's verdict.
type moveCheck struct {
	pod                    *pod.Pod
	local                  *localPod
	target                 *pod.Host
	blockers               []pod.Blocker
	memoryBytes, fileBytes int64
	processes, connections int
}

// blockedError is what a move fails with that preflight refused.
type blockedError struct {
	pod string
	// action is what can't be done with the pod; empty means moved.
	action   string
	blockers []pod.Blocker
}

func (e *blockedError) Error() string {
	lines := []string{fmt.Sprintf("pod %s can't be %s now:", e.pod, cmp.Or(e.action, "moved"))}
	for _, b := range e.blockers {
		lines = append(lines, "  "+b.String())
	}
	return strings.Join(lines, "\n")
}

func (e *blockedError) Unwrap() error { return pod.ErrBlocked }

// checkMove runs preflight at both ends. It changes nothing. Requests that can
// never succeed are errors; what the pod or the hosts are like is a blocker.
func (d *Daemon) checkMove(ctx context.Context, order moveOrder) (*moveCheck, error) {
	name, target := order.pod, order.target
	record, err := d.dir.Pod(ctx, name)
	if err != nil {
		return nil, err
	}
	switch {
	case record.Phase == pod.PhaseMoving:
		return nil, fmt.Errorf("pod %s: %w: move %s of it is under way", name, pod.ErrConflict, record.Move)
	case record.Phase != pod.PhaseRunning:
		return nil, fmt.Errorf("pod %s: %w: it is %s; only a running pod can be moved", name, pod.ErrPhase, record.Phase)
	}
	host, err := d.dir.Host(ctx, target)
	if err != nil {
		return nil, err
	}
	if target == record.Binding.Host {
		return nil, fmt.Errorf("%w: pod %s is on host %s already", pod.ErrInvalid, name, target)
	}
	if !host.Alive {
		return nil, fmt.Errorf("%w: host %s is down: its podd does not answer", pod.ErrUnavailable, target)
	}
	if d.engine == nil {
		return nil, fmt.Errorf("%w: host %s: %w", pod.ErrBlocked, d.Name, d.engineErr)
	}
	p, err := d.localPod(name)
	if err != nil {
		return nil, err
	}
	check := &moveCheck{pod: record, local: p, target: host}
	if err := p.awaitMemory(ctx); err != nil {
		return nil, err
	}
	if err := d.checkSource(ctx, p, check); err != nil {
		return nil, err
	}
	blockers, err := d.askTarget(ctx, p, check, order)
	if err != nil {
		return nil, err
	}
	check.blockers = append(check.blockers, blockers...)
	return check, nil
}

// checkSource looks at the pod itself.
func (d *Daemon) checkSource(ctx context.Context, p *localPod, check *moveCheck) error {
	pid, running := p.container.PID()
	if !running {
		return fmt.Errorf("pod %s: %w: its main command has ended", p.name, pod.ErrPhase)
	}
	var err error
	check.blockers, err = checkpoint.Preflight(ctx, pid, checkpoint.PreflightOptions{
		Cgroup: p.container.FreezerDir(), ExternalMounts: keys(p.container.ExternalMounts()),
	})
	if err != nil {
		return err
	}
	network, err := d.net(ctx)
	if err != nil {
		return err
	}
	if check.connections, err = network.CountConnections(d.netnsPath(p.name, p.epoch)); err != nil {
		return err
	}
	usage, err := p.container.Usage()
	if err != nil {
		return err
	}
	check.processes, check.memoryBytes = usage.Processes, usage.MemoryBytes
	for _, tree := range p.container.Trees() {
		size, err := diskUsage(tree.Path)
		if err != nil {
			return fmt.Errorf("measuring the pod's files: %w", err)
		}
		check.fileBytes += size
	}
	return nil
}

// diskUsage is the space that the files below root take, in bytes. Files that
// vanish meanwhile do not count.
func diskUsage(root string) (int64, error) {
	var total int64
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err == nil {
			var info fs.FileInfo
			if info, err = entry.Info(); err == nil {
				const statBlock = 512 // stat(2): st_blocks counts these
				total += info.Sys().(*syscall.Stat_t).Blocks * statBlock
				return nil
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return total, err
}

// checkTimeout bounds the target's half of preflight, which may have to read
// every mapped program; holdTimeout bounds the wait for the proxy.
const (
	checkTimeout = 30 * time.Second
	holdTimeout  = 3 * time.Second
)

// askTarget sends the target what it needs to judge.
func (d *Daemon) askTarget(ctx context.Context, p *localPod, check *moveCheck, order moveOrder) ([]pod.Blocker, error) {
	self, err := d.dir.Host(ctx, d.Name)
	if err != nil {
		return nil, err
	}
	flags, err := cpuFlags()
	if err != nil {
		return nil, err
	}
	mapped, err := d.mappedLowerFiles(p)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	peers, done := d.peersFor(order.strategy, "")
	defer done()
	response, err := targetClient(peers, check.target.Name).CheckTarget(ctx, connect.NewRequest(&poddv1.CheckTargetRequest{
		Spec: api.SpecToProto(check.pod.Spec), Kernel: self.Kernel, CriuVersion: int32(self.CRIU), Version: version.String(),
		CpuFlags: flags, MemoryBytes: check.memoryBytes, FileBytes: check.fileBytes, MappedFiles: mapped,
	}))
	if err != nil {
		return nil, d.advise(fmt.Errorf("asking host %s: %w", check.target.Name, err), order)
	}
	return api.BlockersFromProto(response.Msg.GetBlockers()), nil
}

func targetClient(peers *daemon.Peers, host string) poddv1connect.TargetServiceClient {
	return poddv1connect.NewTargetServiceClient(peers.Client(), daemon.PeerURL(trust.KindHost, host), api.ClientOptions())
}

// holdAtProxy makes a proxy queue the packets of the pod that a move is about.
func (d *Daemon) holdAtProxy(ctx context.Context, proxy, move string) error {
	ctx, cancel := context.WithTimeout(ctx, holdTimeout)
	defer cancel()
	client := poddv1connect.NewProxyServiceClient(d.cluster.Peers.Client(), daemon.PeerURL(trust.KindProxy, proxy), api.ClientOptions())
	_, err := client.Hold(ctx, connect.NewRequest(&poddv1.HoldRequest{Move: move}))
	return err
}

// mappedLowerFiles digests the files of the read-only image that the pod's
// processes have mapped. CRIU maps them again by name, and checks no more than
// their size.
func (d *Daemon) mappedLowerFiles(p *localPod) ([]*poddv1.MappedFile, error) {
	paths, err := p.container.MappedFiles()
	if err != nil {
		return nil, err
	}
	var files []*poddv1.MappedFile
	for _, path := range paths {
		file, err := d.digests.lower(p.container.Layers(), path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it is in the writable layer, which moves along
		}
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

type targetService struct{ d *Daemon }

// CheckTarget is the target's half of preflight.
func (s *targetService) CheckTarget(ctx context.Context, r *connect.Request[poddv1.CheckTargetRequest]) (*connect.Response[poddv1.CheckTargetResponse], error) {
	if err := fault.At("target:"+string(pod.StagePreflight), nil); err != nil {
		return nil, err
	}
	blockers, err := s.d.checkTarget(ctx, r.Msg)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&poddv1.CheckTargetResponse{Blockers: api.BlockersToProto(blockers)}), nil
}

func (d *Daemon) checkTarget(ctx context.Context, r *poddv1.CheckTargetRequest) ([]pod.Blocker, error) {
	var blockers []pod.Blocker
	block := func(problem, remedy string) {
		blockers = append(blockers, pod.Blocker{Descriptor: -1, Problem: "host " + d.Name + ": " + problem, Remedy: remedy})
	}
	spec := api.SpecFromProto(r.GetSpec())
	if d.engine == nil {
		block(d.engineErr.Error(), "install CRIU and restart podd there")
	} else if got, want := d.engine.Version(), int(r.GetCriuVersion()); got != want {
		block(fmt.Sprintf("CRIU is version %s, on the source %s, and their images differ", criuVersion(got), criuVersion(want)), "install the same version on both hosts")
	}
	flags, err := cpuFlags()
	if err != nil {
		return nil, err
	}
	if missing := without(r.GetCpuFlags(), flags); len(missing) > 0 {
		block("its processor lacks "+strings.Join(missing, ", "), "programs may have found these features when they started: choose a host with the same or a newer processor")
	}
	layers, err := d.imageLayers(spec)
	if errors.Is(err, pod.ErrNotFound) {
		block(err.Error(), fmt.Sprintf("import it: podctl image import --host %s FILE", d.Name))
	} else if err != nil {
		return nil, err
	} else if err := d.digests.compare(layers, r.GetMappedFiles(), block); err != nil {
		return nil, err
	}
	for _, v := range spec.Volumes {
		if v.Named() || v.Policy == pod.VolumeMove || v.Policy == pod.VolumeCopy {
			continue
		}
		if _, err := os.Stat(v.Source); err != nil {
			block(fmt.Sprintf("volume %s: %v", v.Destination, err), fmt.Sprintf("provide %s there, or give the volume policy move or copy", v.Source))
		}
	}
	return blockers, d.checkSpace(r, block)
}

// spaceReserve is what a move must leave free on the target, in bytes.
const spaceReserve = 64 << 20

// checkSpace compares what will come with what there is.
func (d *Daemon) checkSpace(r *poddv1.CheckTargetRequest, block func(problem, remedy string)) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(d.StateDir, &fs); err != nil {
		return fmt.Errorf("looking at the space in %s: %w", d.StateDir, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; r.GetFileBytes()+spaceReserve > free {
		block(fmt.Sprintf("no space: the pod's files take %d MiB, and %s has %d MiB free", r.GetFileBytes()>>20, d.StateDir, free>>20), "free some space, or choose another host")
	}
	free, err := availableMemory()
	if err != nil {
		return err
	}
	// Once as the image and once as the restored processes.
	if need := 2 * r.GetMemoryBytes(); need+spaceReserve > free {
		block(fmt.Sprintf("not enough memory: a move of %d MiB takes twice that for a moment, and %d MiB are available", r.GetMemoryBytes()>>20, free>>20), "choose another host")
	}
	return nil
}

func criuVersion(v int) string { return fmt.Sprintf("%d.%d.%d", v/10000, v/100%100, v%100) }

// without is the elements of a that are not in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}
