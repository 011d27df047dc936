package podd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"podd/checkpoint"
	"podd/doctor"
	"podd/pod"
)

// criuFacts is whether CRIU can be run at this moment, which need not be what
// podd found when it started.
type criuFacts struct {
	// path is the program, as configured.
	path    string
	kernel  string
	version int
	// err is why it can't be used, started why podd's start could not.
	err, started error
	// complaint is what "criu check" says, "" when it is content.
	complaint string
	// stopCopy is why memory moves only while a pod is frozen, if that is so.
	stopCopy error
}

// criuCheckTimeout bounds "criu check", which takes 20 ms.
const criuCheckTimeout = 10 * time.Second

func (d *Daemon) lookAtCRIU(ctx context.Context) criuFacts {
	f := criuFacts{path: cmp.Or(d.CRIUPath, "criu"), kernel: doctor.Release(), started: d.engineErr}
	engine, err := checkpoint.Open(checkpoint.Options{CRIUPath: d.CRIUPath, PageFilter: d.PageFilter})
	if f.err = err; err != nil {
		return f
	}
	f.version = engine.Version()
	f.stopCopy = cmp.Or(engine.CanLeaveOut(), engine.CanRestoreLazily())
	ctx, cancel := context.WithTimeout(ctx, criuCheckTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, f.path, "check").CombinedOutput()
	if err != nil {
		f.complaint = cmp.Or(firstError(string(out)), err.Error())
	}
	return f
}

func lookAtHugePages() doctor.HugePages {
	always, err := checkpoint.AlwaysHuge()
	return doctor.HugePages{Always: always, Err: err}
}

// firstError is the first line of CRIU's output that is an error.
func firstError(out string) string {
	for line := range strings.Lines(out) {
		if _, message, found := strings.Cut(line, "Error "); found {
			return strings.TrimSpace(message)
		}
	}
	return ""
}

func (f criuFacts) Judge() []doctor.Finding {
	const check = "criu"
	install := "apt-get install criu && systemctl restart podd   # 4.2 or newer, which Debian has from sid on"
	switch {
	case errors.Is(f.err, checkpoint.ErrTooOld):
		return []doctor.Finding{doctor.Bad(check, install, "no pod can be moved from or to this host: %v", f.err)}
	case f.err != nil:
		if f.path != "criu" {
			install = fmt.Sprintf("ls -l %s   # it is what criu-path says in /etc/podd/podd.toml; or %s", f.path, install)
		}
		return []doctor.Finding{doctor.Bad(check, install, "no pod can be moved from or to this host: %v", f.err)}
	case f.started != nil:
		return []doctor.Finding{doctor.Bad(check, "systemctl restart podd",
			"CRIU %s is there now, but was not when podd started (%v): no pod can be moved from or to this host", criuVersion(f.version), f.started)}
	case f.complaint != "":
		return []doctor.Finding{doctor.Bad(check, f.path+" check   # names what the kernel lacks", "CRIU %s finds that kernel %s lacks something: %s", criuVersion(f.version), f.kernel, f.complaint)}
	}
	if f.stopCopy != nil {
		return []doctor.Finding{doctor.Worry(check, "uname -r; ls -l $(dirname $(command -v podd))   # Linux 6.7 with userfaultfd, and podd-pagefilter.so beside podd",
			"CRIU %s works, but all memory of a pod has to move while it is frozen: %v", criuVersion(f.version), f.stopCopy)}
	}
	return []doctor.Finding{doctor.Good(check, "version %s suits kernel %s, and its own check passes", criuVersion(f.version), f.kernel)}
}

// criuVersions are those of this host and of the others that are alive.
type criuVersions struct {
	own    int
	others map[string]int
}

// Judge warns of hosts that no pod can be moved to: CRIU reads the images of its
// own version only. A host without CRIU says so itself.
func (v criuVersions) Judge() []doctor.Finding {
	var findings []doctor.Finding
	for _, name := range slices.Sorted(maps.Keys(v.others)) {
		if other := v.others[name]; other != v.own && other != 0 && v.own != 0 {
			older := name
			if v.own < other {
				older = "this one"
			}
			findings = append(findings, doctor.Worry("criu", fmt.Sprintf("apt-get install criu && systemctl restart podd   # on the older: %s", older),
				"host %s has CRIU %s, this one %s: pods can't be moved between them", name, criuVersion(other), criuVersion(v.own)))
		}
	}
	return findings
}

// mountFacts is where the mounts are that podd makes.
type mountFacts struct {
	// own says that podd has a mount namespace of its own, ownErr why that is
	// not known.
	own    bool
	ownErr error
	// imagesDir is where the images of moves are, inMemory whether on a tmpfs.
	imagesDir string
	inMemory  bool
	err       error
}

func (d *Daemon) lookAtMounts() mountFacts {
	f := mountFacts{imagesDir: d.imagesDir()}
	own, err1 := os.Readlink("/proc/self/ns/mnt")
	machine, err2 := os.Readlink("/proc/1/ns/mnt")
	f.own, f.ownErr = own != machine, errors.Join(err1, err2)
	var st unix.Statfs_t
	f.err = unix.Statfs(f.imagesDir, &st)
	f.inMemory = st.Type == unix.TMPFS_MAGIC
	return f
}

func (f mountFacts) Judge() []doctor.Finding {
	const check = "mounts"
	var findings []doctor.Finding
	if f.ownErr == nil && f.own {
		findings = append(findings, doctor.Bad(check, "systemctl edit podd   # PrivateTmp=no, ProtectSystem=no, ProtectHome=no, PrivateMounts=no; then systemctl restart podd",
			"podd has a mount namespace of its own: after a restart it will not find its pods again"))
	}
	switch {
	case f.err != nil:
		findings = append(findings, doctor.Bad(check, "systemctl restart podd   # makes it again", "images of moves have no place: %s: %v", f.imagesDir, f.err))
	case !f.inMemory:
		findings = append(findings, doctor.Worry(check, "systemctl restart podd   # mounts a tmpfs again at "+f.imagesDir,
			"images of moves are not kept in memory but in %s: a move freezes the pod for longer, and leaves its memory on a disk", f.imagesDir))
	case len(findings) == 0:
		findings = append(findings, doctor.Good(check, "they outlive podd, and images of moves are kept in memory"))
	}
	return findings
}

// initFacts is the program that is the first of every pod.
type initFacts struct {
	path string
	mode os.FileMode
	err  error
}

func lookAtInit(path string) initFacts {
	info, err := os.Stat(path)
	if err != nil {
		return initFacts{path: path, err: err}
	}
	return initFacts{path: path, mode: info.Mode()}
}

func (f initFacts) Judge() []doctor.Finding {
	remedy := fmt.Sprintf("install -m 755 podinit %s   # from the build that podd is of; or set --init-path", f.path)
	switch {
	case f.err != nil:
		return []doctor.Finding{doctor.Bad("podinit", remedy, "no pod can be started: %v", f.err)}
	case !f.mode.IsRegular() || f.mode&0o111 == 0:
		return []doctor.Finding{doctor.Bad("podinit", remedy, "no pod can be started: %s is no program (%s)", f.path, f.mode)}
	}
	return []doctor.Finding{doctor.Good("podinit", "%s is there", f.path)}
}

// moveFacts are the moves from and to this host that are not over.
type moveFacts struct {
	moves []pod.Move
	now   time.Time
}

// A move that takes longer than this is worth a look.
const moveWorry = 10 * time.Minute

func movesUnderWay(host string, moves map[string]*pod.Move) moveFacts {
	f := moveFacts{now: time.Now()}
	for _, m := range moves {
		if (m.State == pod.MoveRunning || m.State == pod.MoveCommitted) && (m.Source == host || m.Target == host) {
			f.moves = append(f.moves, *m)
		}
	}
	slices.SortFunc(f.moves, func(a, b pod.Move) int { return a.StartedAt.Compare(b.StartedAt) })
	return f
}

func (f moveFacts) Judge() []doctor.Finding {
	var findings []doctor.Finding
	for _, m := range f.moves {
		age := f.now.Sub(m.StartedAt)
		if age < moveWorry {
			continue
		}
		if m.State == pod.MoveCommitted {
			findings = append(findings, doctor.Worry("moves", fmt.Sprintf("podctl doctor %s   # is its podd up, and can it reach the directory? it removes its copy then", m.Source),
				"move %s of pod %s from %s to %s, begun %s ago, was committed, but %s has not cleaned up: the pod can't be moved back there", m.ID, m.Pod, m.Source, m.Target, age.Round(time.Second), m.Source))
			continue
		}
		findings = append(findings, doctor.Worry("moves", fmt.Sprintf("podctl move show %s   # and to undo it: podctl move --cancel %s", m.ID, m.ID),
			"move %s of pod %s from %s to %s has been under way for %s and is at stage %s", m.ID, m.Pod, m.Source, m.Target, age.Round(time.Second), m.Stage))
	}
	if len(findings) == 0 {
		findings = append(findings, doctor.Good("moves", "%d under way, none for long", len(f.moves)))
	}
	return findings
}
