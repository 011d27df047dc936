package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"time"

	"podd/pod"
	"podd/procfs"
)

const (
	// leastTries is how often Preflight must find what it reports.
	leastTries = 2
	// transientTries and transientWait say how long it waits for what goes
	// away by itself, such as a connection not yet accepted.
	transientTries = 25
	transientWait  = 20 * time.Millisecond
)

// PreflightOptions tell what is known about the pod.
type PreflightOptions struct {
	// Cgroup is the directory of the pod's cgroup (of any controller), to find
	// processes that are in it but not in the pod's tree. Empty skips that.
	Cgroup string
	// ExternalMounts are those of the DumpOptions: their file systems don't
	// matter.
	ExternalMounts map[string]string
}

// Preflight looks for what CRIU can't carry in the pod whose init is pid (as
// this process sees it), without stopping anything. What it finds it looks at
// once more, what would only fail at this moment for half a second, and
// reports what was there every time. An empty result is no proof, only CRIU's
// word is; but what is found would have failed, or would have been lost silently.
//
// Unix connections between the pod and this process are not reported: the
// caller knows them and closes them before a dump.
//
// The rules are those of CRIU 4.2; docs/limits.md explains them to users.
func Preflight(ctx context.Context, pid int, options PreflightOptions) ([]pod.Blocker, error) {
	var blockers, passing []pod.Blocker
	waiting := make(map[[2]int]listener)
	for try := 1; ; try++ {
		s := survey{init: pid, options: options, waiting: waiting}
		if err := s.run(); err != nil {
			return nil, fmt.Errorf("preflight of pod with init %d: %w", pid, err)
		}
		if try == 1 {
			blockers, passing = s.blockers, s.passing
		} else {
			blockers, passing = lasting(blockers, s.blockers), lasting(passing, s.passing)
		}
		if try >= leastTries && len(passing) == 0 || try == transientTries || len(blockers)+len(passing) == 0 {
			return append(blockers, passing...), nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("preflight of pod with init %d: %w", pid, context.Cause(ctx))
		case <-time.After(transientWait):
		}
	}
}

// lasting is what a survey found that the one before had found too. A busy
// program always has something on its way, but not always the same; and where
// processes come and go a survey is no picture of one moment.
func lasting(before, now []pod.Blocker) []pod.Blocker {
	return slices.DeleteFunc(now, func(b pod.Blocker) bool {
		return !slices.ContainsFunc(before, func(a pod.Blocker) bool {
			// The problem may have another number in it, such as that of
			// connections that wait.
			return a.PID == b.PID && a.Descriptor == b.Descriptor && a.Remedy == b.Remedy
		})
	})
}

// ignoreGone is err unless it means that a process ended meanwhile.
func ignoreGone(err error) error {
	if procfs.Gone(err) {
		return nil
	}
	return err
}

// survey is one look at all processes of a pod.
type survey struct {
	init    int
	options PreflightOptions

	depth    int // of the pod's pid namespace
	table    map[int]procfs.Stat
	members  map[int]bool
	mounts   map[int]bool    // mount IDs of all of the pod's mount namespaces
	pidNS    string          // link of the pod's pid namespace
	spaces   map[string]bool // links of the pod's namespaces
	pipes    map[string]*pipeEnds
	sockets  map[uint32]unixSocket // by inode
	blockers []pod.Blocker
	passing  []pod.Blocker // what may go away by itself
	// waiting is what is known of listeners from earlier looks, by process and
	// descriptor.
	waiting map[[2]int]listener
}

// listener is a listening socket over several looks: how many connections waited
// at the last one, and whether there have ever become fewer.
type listener struct {
	last    uint32
	accepts bool
}

// process is one process of the pod.
type process struct {
	pid, inner int
	program    string
	state      byte
	tracer     int
}

// descriptor is one open file of a process.
type descriptor struct {
	process process
	number  int
}

func (p process) proc(elements ...string) string {
	return filepath.Join(append([]string{"/proc", strconv.Itoa(p.pid)}, elements...)...)
}

// blocker is about a process, or one descriptor of it, or -1.
func (p process) blocker(number int, problem, remedy string) pod.Blocker {
	return pod.Blocker{PID: p.inner, Program: p.program, Descriptor: number, Problem: problem, Remedy: remedy}
}

// block adds a blocker.
func (s *survey) block(p process, number int, problem, remedy string) {
	s.blockers = append(s.blockers, p.blocker(number, problem, remedy))
}

// blockNow is block for something that may go away by itself.
func (s *survey) blockNow(p process, number int, problem, remedy string) {
	s.passing = append(s.passing, p.blocker(number, problem, remedy))
}

func (s *survey) run() error {
	s.members = make(map[int]bool)
	s.mounts = make(map[int]bool)
	s.pipes = make(map[string]*pipeEnds)
	s.sockets = make(map[uint32]unixSocket)
	processes, err := s.findProcesses()
	if err != nil {
		return err
	}
	if err := s.findMounts(processes); err != nil {
		return err
	}
	for _, p := range processes {
		check := s.checkProcess
		if p.state == 'Z' {
			check = s.checkZombie
		}
		// A process that ends meanwhile is no problem any more.
		if err := check(p); err != nil && !procfs.Gone(err) {
			return fmt.Errorf("process %d (%s): %w", p.pid, p.program, err)
		}
	}
	if err := s.checkPipes(); err != nil {
		return err
	}
	return s.checkUnixSockets()
}

// findProcesses collects the pod's processes, in the order of their pids in
// the pod, and reports those that don't descend from its init.
func (s *survey) findProcesses() ([]process, error) {
	numbers, err := procfs.NamespacePIDs(s.init)
	if err != nil {
		return nil, err
	}
	s.depth = len(numbers)
	if s.pidNS, err = procfs.PIDNamespace(s.init); err != nil {
		return nil, err
	}
	inNamespace, err := procfs.PodProcesses(s.init)
	if err != nil {
		return nil, err
	}
	for _, stat := range inNamespace {
		s.members[stat.PID] = true
	}
	inCgroup, err := cgroupProcesses(s.options.Cgroup)
	if err != nil {
		return nil, err
	}
	for _, pid := range inCgroup {
		s.members[pid] = true
	}
	if s.table, err = procfs.Table(); err != nil {
		return nil, err
	}
	var processes []process
	for pid := range s.members {
		p, err := s.readProcess(pid)
		if procfs.Gone(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		processes = append(processes, p)
	}
	sort.Slice(processes, func(i, j int) bool { return processes[i].inner < processes[j].inner })
	for _, p := range processes {
		if !s.descends(p.pid) {
			s.blockNow(p, -1, fmt.Sprintf("was started from outside of the pod: its parent is process %d of the host", s.table[p.pid].Parent),
				"end it, or start it so that its parent in the pod is the pod's init")
		}
	}
	return slices.DeleteFunc(processes, func(p process) bool { return !s.descends(p.pid) }), nil
}

// inPod reports whether a process is in the pod, or has ended. It may have begun
// after the others were collected.
func (s *survey) inPod(pid int) bool {
	if s.members[pid] {
		return true
	}
	ns, err := procfs.PIDNamespace(pid)
	return procfs.Gone(err) || err == nil && ns == s.pidNS
}

// descends reports whether the pod's init is an ancestor of pid, or pid itself.
func (s *survey) descends(pid int) bool {
	for range len(s.table) {
		if pid == s.init {
			return true
		}
		stat, ok := s.table[pid]
		if !ok {
			return false
		}
		pid = stat.Parent
	}
	return false
}

func (s *survey) readProcess(pid int) (process, error) {
	stat, err := procfs.ReadStat(pid)
	if err != nil {
		return process{}, err
	}
	pids, err := procfs.NamespacePIDs(pid)
	if err != nil {
		return process{}, err
	}
	p := process{pid: pid, program: stat.Program, state: stat.State}
	if len(pids) >= s.depth {
		p.inner = pids[s.depth-1]
	}
	p.tracer, err = statusNumber(pid, "TracerPid")
	return p, err
}

// statusNumber reads one number of /proc/PID/status.
func statusNumber(pid int, key string) (int, error) {
	value, err := procfs.StatusField(pid, key)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(value)
}

// cgroupProcesses lists the processes of a cgroup and those below it.
func cgroupProcesses(dir string) ([]int, error) {
	if dir == "" {
		return nil, nil
	}
	var pids []int
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			if path != dir && errors.Is(err, os.ErrNotExist) {
				return nil // removed meanwhile
			}
			return err
		}
		if !d.IsDir() {
			return nil
		}
		found, err := procfs.CgroupProcesses(path)
		if err != nil {
			return err
		}
		for _, pid := range found {
			// 0 is a process outside of our pid namespace.
			if pid != 0 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the processes of cgroup %s: %w", dir, err)
	}
	return pids, nil
}

// checkZombie accepts processes that ended, but not those of which only the
// first thread has.
func (s *survey) checkZombie(p process) error {
	threads, err := statusNumber(p.pid, "Threads")
	if err == nil && threads > 1 {
		s.blockNow(p, -1, "has ended its first thread, but not the others", "end the process")
	}
	return err
}

func (s *survey) checkProcess(p process) error {
	if p.tracer != 0 {
		s.block(p, -1, fmt.Sprintf("is traced by process %d of the host", p.tracer),
			"end the debugger or tracer, such as gdb or strace")
	}
	if p.state == 'D' {
		s.blockNow(p, -1, "waits in the kernel and can't be stopped (state D)",
			"wait for its I/O; if it does not end, look at the file system or device it uses")
	}
	for _, check := range []func(process) error{s.checkNamespaces, s.checkPlaces, s.checkDescriptors, s.checkMappings} {
		if err := check(p); err != nil {
			return err
		}
	}
	return nil
}

// namespaces are those that CRIU dumps only once per pod
// (criu/namespaces.c). Nested mount namespaces are no problem. A nested
// network namespace it dumps, but does not restore, as the pod's own is not
// part of the image.
var namespaces = []struct{ link, name, remedy string }{
	{"user", "user", "start the program without its own sandbox, such as chromium --no-sandbox or MOZ_ASSUME_USER_NS=0 firefox"},
	{"pid_for_children", "pid", "start the program without its own sandbox or containers"},
	{"ipc", "IPC", "start the program without its own sandbox"},
	{"uts", "UTS", "start the program without its own sandbox or containers"},
	{"cgroup", "cgroup", "start the program without its own containers"},
	{"time_for_children", "time", "start the program without unshare --time"},
	{"net", "network", "start the program without its own sandbox or containers"},
}

func (s *survey) checkNamespaces(p process) error {
	for _, ns := range namespaces {
		want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", s.init, ns.link))
		if errors.Is(err, os.ErrNotExist) {
			continue // not in this kernel
		}
		if err != nil {
			return err
		}
		got, err := os.Readlink(p.proc("ns", ns.link))
		if err != nil {
			return err
		}
		if got != want {
			s.block(p, -1, fmt.Sprintf("is in a %s namespace of its own", ns.name), ns.remedy)
		}
	}
	return nil
}
