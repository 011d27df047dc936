package podd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"podd/api"
	poddv1 "podd/api/podd/v1"
	"podd/archive"
	"podd/pod"
)

// checkHeader refuses what the header of a file alone shows can't be restored
// on this host. The error wraps pod.ErrBlocked.
func (d *Daemon) checkHeader(h *archive.Header) error {
	var blockers []pod.Blocker
	block := func(problem, remedy string) {
		blockers = append(blockers, pod.Blocker{Descriptor: -1, Problem: "host " + d.Name + ": " + problem, Remedy: remedy})
	}
	if d.engine == nil {
		return fmt.Errorf("%w: host %s: %w", pod.ErrBlocked, d.Name, d.engineErr)
	}
	if got, want := d.engine.Version(), h.CRIU; got != want {
		block(fmt.Sprintf("CRIU is version %s, the file was written with %s, and their images differ", criuVersion(got), criuVersion(want)), "choose a host with that version")
	}
	flags, err := cpuFlags()
	if err != nil {
		return err
	}
	if missing := without(h.CPUFlags, flags); len(missing) > 0 {
		block("its processor lacks "+strings.Join(missing, ", "), "programs may have found these features when they started: choose a host with the same or a newer processor")
	}
	var host pod.Host
	if err := describeMachine(&host); err != nil {
		return err
	}
	if older(host.Kernel, h.Kernel) {
		block(fmt.Sprintf("its kernel %s is older than %s, on which the file was written", host.Kernel, h.Kernel), "programs may use what it lacks: choose a host with the same or a newer kernel")
	}
	if len(blockers) > 0 {
		return &blockedError{pod: h.Pod, action: "restored", blockers: blockers}
	}
	return nil
}

// older reports whether one kernel release, such as "6.12.43-amd64", comes
// before another, by the first two numbers. One that can't be read is not older.
func older(release, than string) bool {
	var a, b [2]int
	n, _ := fmt.Sscanf(release, "%d.%d", &a[0], &a[1])
	m, _ := fmt.Sscanf(than, "%d.%d", &b[0], &b[1])
	return n == 2 && m == 2 && (a[0] < b[0] || a[0] == b[0] && a[1] < b[1])
}

// checkFile is preflight of a restore, as the target of a move does it. The
// error wraps pod.ErrBlocked.
func (d *Daemon) checkFile(ctx context.Context, spec pod.Spec, file *restoredFile) error {
	h := &file.envelope.Header
	request := &poddv1.CheckTargetRequest{
		Spec: api.SpecToProto(spec), Kernel: h.Kernel, CriuVersion: int32(h.CRIU), Version: h.Version, CpuFlags: h.CPUFlags,
	}
	for _, m := range h.Members {
		switch m.Name {
		case memberMemory:
			request.MemoryBytes = m.Size
		case memberFiles:
			request.FileBytes = m.Size
		}
	}
	for _, f := range file.manifest.MappedFiles {
		request.MappedFiles = append(request.MappedFiles, &poddv1.MappedFile{Path: f.Path, Size: f.Size, Digest: f.Digest})
	}
	blockers, err := d.checkTarget(ctx, request)
	if err != nil {
		return err
	}
	for _, v := range spec.Volumes {
		if v.Named() || v.Policy != pod.VolumeMove && v.Policy != pod.VolumeCopy {
			continue
		}
		if empty, err := emptyDir(v.Source); err != nil {
			return fmt.Errorf("volume %s: %w", v.Destination, err)
		} else if !empty {
			blockers = append(blockers, pod.Blocker{
				Descriptor: -1, Problem: fmt.Sprintf("host %s: volume %s: %s is not empty, and the file would replace what is in it", d.Name, v.Destination, v.Source),
				Remedy: "move it out of the way",
			})
		}
	}
	if len(blockers) > 0 {
		return &blockedError{pod: spec.Name, action: "restored", blockers: blockers}
	}
	return nil
}

// emptyDir reports whether nothing is lost when a directory is filled: it is not
// there, or has nothing in it.
func emptyDir(path string) (bool, error) {
	dir, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	_, err = dir.Readdirnames(1)
	if err == io.EOF {
		return true, nil
	}
	return false, err
}
