package podd

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"podd/checkpoint"
	"podd/namespace"
	"podd/pod"
)

// local is what this host has under the name of one pod.
type local struct {
	// found is by epoch.
	found map[pod.Epoch]remains
	// images are the directories of images.
	images []imagesDir
	// kept is the incarnation whose memory this host keeps for the pod, which has
	// moved on; 0 if there is none.
	kept pod.Epoch
	// tracked is the pod that podd looks after, nil if it does none of this
	// name. frozen and blocked are about it.
	tracked         *localPod
	frozen, blocked bool
}

// remains is what there is of one incarnation.
type remains struct {
	// files says that there is a container, live that it has what only a
	// running pod needs, network that there is a network namespace.
	files, live, network bool
}

// imagesDir is a directory of images and whose it is.
type imagesDir struct {
	path string
	kind imagesKind
	of   incarnation
}

// look finds everything that is on this host of any pod, by name. It goes by the
// names of files and cgroups alone: what a crash has left may have no record.
func (d *Daemon) look() (map[string]local, error) {
	found := map[string]local{}
	note := func(name string, epoch pod.Epoch, change func(*remains)) {
		l := found[name]
		if l.found == nil {
			l.found = map[pod.Epoch]remains{}
		}
		r := l.found[epoch]
		change(&r)
		l.found[epoch] = r
		found[name] = l
	}
	containers, err := d.runtime.Remains()
	if err != nil {
		return nil, err
	}
	for _, c := range containers {
		note(c.Name, c.Epoch, func(r *remains) { r.files, r.live = true, c.Live })
	}
	entries, err := os.ReadDir(d.netnsDir())
	if err != nil {
		return nil, fmt.Errorf("looking for network namespaces: %w", err)
	}
	for _, e := range entries {
		if i, ok := parseNetns(e.Name()); ok {
			note(i.name, i.epoch, func(r *remains) { r.network = true })
		}
	}
	if entries, err = os.ReadDir(d.imagesDir()); err != nil {
		return nil, fmt.Errorf("looking for images: %w", err)
	}
	for _, e := range entries {
		if kind, of, ok := parseImages(e.Name()); ok {
			l := found[of.name]
			l.images = append(l.images, imagesDir{filepath.Join(d.imagesDir(), e.Name()), kind, of})
			found[of.name] = l
		}
	}
	return found, nil
}

// parseNetns is the inverse of netnsPath, for the last element of the path.
func parseNetns(base string) (i incarnation, ok bool) {
	dash := strings.LastIndexByte(base, '-')
	if dash < 0 {
		return i, false
	}
	epoch, err := strconv.ParseUint(base[dash+1:], 10, 64)
	i = incarnation{base[:dash], pod.Epoch(epoch)}
	return i, err == nil && pod.ValidateName(i.name) == nil
}

// addState notes that podd looks after a pod, and whether that one stands still
// or can't be heard, which is nobody's wish when no operation is under way.
func (d *Daemon) addState(name string, l *local, p *localPod) error {
	l.kept = d.memories.kept(name)
	if l.tracked = p; p == nil {
		return nil
	}
	if _, running := p.container.PID(); !running {
		return nil // its monitor sees to it
	}
	freezer, err := checkpoint.NewFreezer(p.container.FreezerDir())
	if err != nil {
		return err
	}
	if l.frozen, err = freezer.Frozen(); err != nil {
		return err
	}
	// While its memory arrives that is the pager's wish, when it lacks some.
	l.frozen = l.frozen && p.memory.Load() == nil
	d.mu.Lock()
	network := d.network
	d.mu.Unlock()
	if network == nil {
		return nil // it has not been needed yet
	}
	l.blocked, err = network.Blocked(d.netnsPath(p.name, p.epoch))
	if errors.Is(err, fs.ErrNotExist) { // the pod has just ended
		return nil
	}
	return err
}

// step is one thing to be put right.
type step struct {
	kind  driftKind
	epoch pod.Epoch
	// what says it to people.
	what string
	// tracked is the pod it is about, for driftSuperseded, driftFrozen and
	// driftBlocked; path the directory, for driftImages.
	tracked *localPod
	path    string
	// ended says that the pod has ended and keeps its files.
	ended bool
}

// superseded reports whether a pod that this podd looks after is not the one
// that the directory has here.
func superseded(host string, record *pod.Pod, p *localPod) bool {
	if record == nil || record.Binding.Host != host || record.Binding.Epoch != p.epoch {
		return true
	}
	label := p.container.Config().Label
	return label != 0 && label != record.Binding.Label
}

// plan says what has to be done on a host that has l so that it has what the
// record of the pod says; record is nil when there is none. The pod's claim is
// held, so no operation is building or moving any of it.
func plan(host string, record *pod.Pod, l local) []step {
	var steps []step
	bound := record != nil && record.Binding.Host == host
	lost := bound && record.Phase == pod.PhaseMoving
	var current pod.Epoch // the incarnation that belongs here
	if bound {
		current = record.Binding.Epoch
	}
	p := l.tracked
	switch {
	case p == nil:
	case superseded(host, record, p):
		steps = append(steps, step{kind: driftSuperseded, epoch: p.epoch, tracked: p, what: "a copy that runs here, while " + whereabouts(record) + ": killed in silence"})
	default:
		if lost {
			steps = append(steps, step{kind: driftMove, epoch: p.epoch, what: "move " + record.Move + ", which nobody carries out: aborted"})
		}
		if l.frozen {
			steps = append(steps, step{kind: driftFrozen, epoch: p.epoch, tracked: p, what: "the pod was frozen without a move: thawed"})
		} else if l.blocked {
			steps = append(steps, step{kind: driftBlocked, epoch: p.epoch, tracked: p, what: "the pod's network was blocked without a move: unblocked"})
		}
	}
	for _, epoch := range slices.Sorted(maps.Keys(l.found)) {
		r := l.found[epoch]
		s := step{kind: driftContainer, epoch: epoch}
		if !r.files {
			s.kind = driftNetwork
		}
		id := namespace.ID(nameOf(record, l), epoch)
		switch {
		case p != nil && epoch == p.epoch:
			continue // handled above
		case epoch == l.kept:
			continue // frozen, and ended when its memory is not wanted any more
		case continued(host, record, epoch):
			continue // what a restore under way comes back to if it fails
		case !bound || epoch != current:
			s.what = fmt.Sprintf("what was left of %s, while %s: removed", id, whereabouts(record))
		case record.Phase == pod.PhaseStopped && !removedOnExit(record) || record.Phase == pod.PhaseFailed:
			if !r.live && !r.network {
				continue
			}
			s.ended, s.what = true, fmt.Sprintf("mounts, cgroup or network of %s, which has ended: removed", id)
		default:
			continue // taken over below
		}
		steps = append(steps, s)
	}
	if p == nil && bound {
		if lost {
			steps = append(steps, step{kind: driftMove, epoch: current, what: "move " + record.Move + ", which nobody carries out: aborted"})
		}
		if record.Phase.Live() || record.Phase == pod.PhaseCreating || removedOnExit(record) {
			steps = append(steps, step{kind: driftUntracked, epoch: current, what: fmt.Sprintf("a pod that is %s and that podd did not look after: settled", record.Phase)})
		}
	}
	for _, images := range l.images {
		wanted := bound && images.of.epoch == current && record.Phase.Live()
		switch {
		case images.kind == targetImages && wanted && p == nil:
			continue // from these the pod may still have to be restored; recoverPod removes them
		case images.kind == memoryImages && wanted && (p == nil || p.memory.Load() != nil):
			continue // a pager's, which is at work or will be taken over
		}
		steps = append(steps, step{kind: driftImages, epoch: images.of.epoch, path: images.path, what: "images that nobody needs: removed"})
	}
	return steps
}

// removedOnExit reports whether a pod has ended and goes with that. One that was
// written into a file has not ended for good.
func removedOnExit(record *pod.Pod) bool {
	return record.Phase == pod.PhaseStopped && record.Spec.RemoveOnExit && record.Checkpoint == ""
}

// continued reports whether a restore under way is to replace that incarnation,
// which has ended on this host.
func continued(host string, record *pod.Pod, epoch pod.Epoch) bool {
	return record != nil && record.Continues != nil && record.Continues.Binding.Host == host && record.Continues.Binding.Epoch == epoch
}

// nameOf is the name that a plan is about.
func nameOf(record *pod.Pod, l local) string {
	switch {
	case record != nil:
		return record.Name()
	case l.tracked != nil:
		return l.tracked.name
	}
	return "the pod"
}

// whereabouts says where a pod is in place of here.
func whereabouts(record *pod.Pod) string {
	if record == nil {
		return "there is no such pod"
	}
	return fmt.Sprintf("the pod is on host %s at epoch %d", record.Binding.Host, record.Binding.Epoch)
}
