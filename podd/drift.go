package podd

import (
	"maps"
	"slices"
	"sync"
	"time"

	"podd/pod"
)

// driftKind says what was not as the directory has it, and so what was done
// about it.
type driftKind string

const (
	driftContainer  driftKind = "container"  // processes, mounts, files of an incarnation nobody wants: removed
	driftNetwork    driftKind = "network"    // a network namespace nobody wants: removed
	driftImages     driftKind = "images"     // a directory of images nobody needs: removed
	driftCRIU       driftKind = "criu"       // a CRIU that an earlier podd has left, and that does not end: killed
	driftSuperseded driftKind = "superseded" // a copy that runs here but is another host's, or nobody's: killed in silence
	driftUntracked  driftKind = "untracked"  // a pod of this host that podd did not look after: taken over, or recorded as ended
	driftFrozen     driftKind = "frozen"     // a pod frozen without a move: thawed
	driftBlocked    driftKind = "blocked"    // a pod's network blocked without a move: unblocked
	driftMove       driftKind = "move"       // a move nobody carries out any more: aborted
	driftHost       driftKind = "host"       // the host's own anchor device or firewall rule: put back
)

// driftKinds are all of them.
var driftKinds = []driftKind{
	driftContainer, driftNetwork, driftImages, driftCRIU, driftSuperseded,
	driftUntracked, driftFrozen, driftBlocked, driftMove, driftHost,
}

// drift is one thing that was put right, or could not be.
type drift struct {
	at   time.Time
	kind driftKind
	// pod is empty for the host's own, epoch 0 if it is about no incarnation.
	pod   string
	epoch pod.Epoch
	// what is for people.
	what string
	// err is nil when it was put right.
	err error
}

// driftReport is what the reconcile loop has done so far.
type driftReport struct {
	// last is when the last look ended, zero before the first; err is why it
	// was not complete.
	last time.Time
	err  error
	// passes counts the looks; repaired and failed what was found, by kind.
	passes           uint64
	repaired, failed map[driftKind]uint64
	// recent are the newest, the newest last.
	recent []drift
}

// maxRecentDrifts bounds driftReport.recent.
const maxRecentDrifts = 64

// drifts keeps the report. The zero value is ready.
type drifts struct {
	mu     sync.Mutex
	report driftReport
}

func (d *drifts) add(found drift) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.report.repaired == nil {
		d.report.repaired, d.report.failed = map[driftKind]uint64{}, map[driftKind]uint64{}
	}
	if found.err == nil {
		d.report.repaired[found.kind]++
	} else {
		d.report.failed[found.kind]++
	}
	d.report.recent = append(d.report.recent, found)
	if over := len(d.report.recent) - maxRecentDrifts; over > 0 {
		d.report.recent = slices.Delete(d.report.recent, 0, over)
	}
}

// looked ends one look. It reports whether err is news.
func (d *drifts) looked(err error) (news bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	before := d.report.err
	d.report.last, d.report.err = time.Now(), err
	d.report.passes++
	return err != nil && (before == nil || before.Error() != err.Error())
}

// driftReport is what the reconcile loop has done so far. The caller may keep it.
func (d *Daemon) driftReport() driftReport {
	d.drifts.mu.Lock()
	defer d.drifts.mu.Unlock()
	report := d.drifts.report
	report.repaired, report.failed = maps.Clone(report.repaired), maps.Clone(report.failed)
	report.recent = slices.Clone(report.recent)
	return report
}

// drifted notes one thing that was not as it should be, and logs it.
func (d *Daemon) drifted(found drift) {
	found.at = time.Now()
	d.drifts.add(found)
	log := d.log.With("drift", found.kind)
	if found.pod != "" {
		log = log.With("pod", found.pod, "epoch", found.epoch)
	}
	if found.err != nil {
		log.Error("this is not as it should be, and could not be put right; it is tried again", "what", found.what, "error", found.err)
		return
	}
	log.Warn("put right what was not as the directory has it", "what", found.what)
}
