package checkpoint

import (
	"fmt"
	"math/bits"
	"os"

	"github.com/checkpoint-restore/go-criu/v7/crit/images/creds"
	criucore "github.com/checkpoint-restore/go-criu/v7/crit/images/criu-core"
	criuinventory "github.com/checkpoint-restore/go-criu/v7/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/mm"
	"github.com/checkpoint-restore/go-criu/v7/crit/images/pstree"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
)

// limits are what this process may do itself; a pod can't have more.
type limits struct {
	nice     uint64 // RLIMIT_NICE
	realtime uint64 // RLIMIT_RTPRIO
	niceness int32
}

func ownLimits() (limits, error) {
	var own limits
	for resource, value := range map[int]*uint64{rlimitNice: &own.nice, rlimitRealtime: &own.realtime} {
		var limit unix.Rlimit
		if err := unix.Getrlimit(resource, &limit); err != nil {
			return own, fmt.Errorf("reading resource limit %d: %w", resource, err)
		}
		*value = limit.Max
	}
	raw, err := unix.Getpriority(unix.PRIO_PROCESS, os.Getpid())
	if err != nil {
		return own, fmt.Errorf("reading the priority: %w", err)
	}
	own.niceness = min(0, int32(20-raw)) // the system call gives 20 - nice
	return own, nil
}

// Indices of resource limits (asm-generic/resource.h).
const (
	rlimitNice     = 13
	rlimitRealtime = 14
)

// kinds are the IDs that CRIU gives to namespaces. Two processes with the same
// ID share one; with the ID of inventory.img it is that of CRIU.
type kinds struct{ pid, net, ipc, uts, mount, user, cgroup, time uint32 }

func kindsOf(ids *criucore.TaskKobjIdsEntry) kinds {
	return kinds{ids.GetPidNsId(), ids.GetNetNsId(), ids.GetIpcNsId(), ids.GetUtsNsId(), ids.GetMntNsId(), ids.GetUserNsId(), ids.GetCgroupNsId(), ids.GetTimeNsId()}
}

// initPID is the first process of a PID namespace.
const initPID = 1

// readTree reads the processes.
func (v *verifier) readTree() error {
	allowed := v.policy.Threads
	if allowed == 0 {
		allowed = defaultThreads
	}
	var threads int64
	err := readAll(v, "pstree.img", "PSTREE", func(p *pstree.PstreeEntry) error {
		// The other numbers are of no use where CRIU can't have them; of dead
		// processes it writes down any.
		if p.GetPid() > maxTaskNumber {
			return fmt.Errorf("%w: impossible process %d", ErrCorrupt, p.GetPid())
		}
		if threads += 1 + int64(len(p.GetThreads())); threads > 2*allowed {
			return fmt.Errorf("%w: more than %d processes and threads", ErrLimit, allowed)
		}
		if isInit := p.GetPid() == initPID; p.GetPid() == 0 || isInit != (p.GetPpid() == 0) || isInit != (len(v.tree) == 0) {
			return fmt.Errorf("%w: process %d is a child of %d; the first must be %d", ErrForbidden, p.GetPid(), p.GetPpid(), initPID)
		}
		v.tree = append(v.tree, p)
		return nil
	})
	if err == nil && len(v.tree) == 0 {
		err = fmt.Errorf("%w: no processes", ErrCorrupt)
	}
	return err
}

// networkLockSkip is NETWORK_LOCK_SKIP (criu/include/cr_options.h). With any
// other value CRIU would change packet filters.
const networkLockSkip = 2

// checkInventory finds out which namespaces are made anew: those whose ID is
// not CRIU's own.
func (v *verifier) checkInventory() error {
	entry, err := readOne[criuinventory.InventoryEntry](v, "inventory.img", "INVENTORY")
	if err != nil {
		return err
	}
	if entry.GetRootIds() == nil || !entry.GetFdinfoPerId() || !entry.GetNsPerId() {
		return fmt.Errorf("%w: inventory.img is of an old format", ErrForbidden)
	}
	if entry.GetNetworkLockMethod() != networkLockSkip || entry.GetTcpClose() || entry.GetPreDumpMode() != 0 {
		return fmt.Errorf("%w: the images were not made by podd's settings", ErrForbidden)
	}
	ids, err := readOne[criucore.TaskKobjIdsEntry](v, "ids-1.img", "IDS")
	if err != nil {
		return err
	}
	host, pod := kindsOf(entry.GetRootIds()), kindsOf(ids)
	for _, n := range []struct {
		name      string
		host, pod uint32
		private   bool
	}{
		{"PID", host.pid, pod.pid, true}, {"mount", host.mount, pod.mount, true},
		{"IPC", host.ipc, pod.ipc, true}, {"UTS", host.uts, pod.uts, true},
		// CRIU is started in the pod's network namespace, on either side.
		{"network", host.net, pod.net, false}, {"user", host.user, pod.user, false},
		{"cgroup", host.cgroup, pod.cgroup, false},
		// The time namespace is CRIU's at first and the pod's own after a move.
	} {
		if n.private && (n.pod == 0 || n.pod == n.host) || !n.private && n.pod != n.host {
			return fmt.Errorf("%w: the %s namespace is %d, that of CRIU %d", ErrForbidden, n.name, n.pod, n.host)
		}
	}
	v.namespaces = pod
	return nil
}

// States of processes (compel/include/uapi/task-state.h).
const (
	taskAlive   = 1
	taskDead    = 2
	taskStopped = 3
	taskZombie  = 6
)

// checkTasks looks at every process and thread.
func (v *verifier) checkTasks() error {
	for _, p := range v.tree {
		name := fmt.Sprintf("core-%d.img", p.GetPid())
		core, err := readOne[criucore.CoreEntry](v, name, "CORE")
		if err != nil {
			return err
		}
		tc := core.GetTc()
		if tc == nil {
			return fmt.Errorf("%w: %s is not of a process", ErrCorrupt, name)
		}
		switch tc.GetTaskState() {
		case taskDead, taskZombie:
			if p.GetPid() == initPID {
				return fmt.Errorf("%w: the first process is dead", ErrForbidden)
			}
			continue // it never runs
		case taskAlive, taskStopped:
		default:
			return fmt.Errorf("%w: process %d has the unknown state %d", ErrForbidden, p.GetPid(), tc.GetTaskState())
		}
		if err := v.checkTask(p, tc); err != nil {
			return fmt.Errorf("process %d: %w", p.GetPid(), err)
		}
		threads := []*criucore.ThreadCoreEntry{core.GetThreadCore()}
		for _, id := range p.GetThreads()[1:] {
			thread, err := readOne[criucore.CoreEntry](v, fmt.Sprintf("core-%d.img", id), "CORE")
			if err != nil {
				return err
			}
			threads = append(threads, thread.GetThreadCore())
		}
		for i, t := range threads {
			if err := v.checkThread(t); err != nil {
				return fmt.Errorf("thread %d: %w", p.GetThreads()[i], err)
			}
		}
		if err := v.checkFilters(threads); err != nil {
			return fmt.Errorf("process %d: %w", p.GetPid(), err)
		}
	}
	return nil
}

func (v *verifier) checkTask(p *pstree.PstreeEntry, tc *criucore.TaskCoreEntry) error {
	ids, err := readOne[criucore.TaskKobjIdsEntry](v, fmt.Sprintf("ids-%d.img", p.GetPid()), "IDS")
	if err != nil {
		return err
	}
	if got := kindsOf(ids); got != v.namespaces {
		return fmt.Errorf("%w: its namespaces %+v are not the pod's, %+v", ErrForbidden, got, v.namespaces)
	}
	if threads := p.GetThreads(); len(threads) == 0 || threads[0] != p.GetPid() {
		return fmt.Errorf("%w: its first thread is not itself", ErrCorrupt)
	}
	if score := tc.GetOomScoreAdj(); score < 0 {
		return fmt.Errorf("%w: oom_score_adj is %d", ErrForbidden, score)
	}
	if tc.OldSeccompMode != nil || tc.OldSeccompFilter != nil {
		return fmt.Errorf("%w: a system call filter in an old place", ErrForbidden)
	}
	list := tc.GetRlimits().GetRlimits()
	for resource, most := range map[int]uint64{rlimitNice: v.own.nice, rlimitRealtime: v.own.realtime} {
		if len(list) > resource && (list[resource].GetMax() > most || list[resource].GetCur() > most) {
			return fmt.Errorf("%w: resource limit %d is %d, here at most %d", ErrForbidden, resource, list[resource].GetMax(), most)
		}
	}
	return v.checkMemory(p.GetPid())
}

// checkThread looks at what a thread may do.
func (v *verifier) checkThread(t *criucore.ThreadCoreEntry) error {
	if t == nil || t.GetCreds() == nil {
		return fmt.Errorf("%w: no credentials", ErrForbidden)
	}
	switch t.GetSchedPolicy() {
	case unix.SCHED_NORMAL, unix.SCHED_BATCH, unix.SCHED_IDLE:
	default:
		return fmt.Errorf("%w: scheduling policy %d", ErrForbidden, t.GetSchedPolicy())
	}
	if t.GetSchedNice() < v.own.niceness {
		return fmt.Errorf("%w: nice value %d", ErrForbidden, t.GetSchedNice())
	}
	if v.cgroup == nil {
		v.cgroup = t.CgSet
	}
	if t.CgSet != nil && *t.CgSet != *v.cgroup {
		return fmt.Errorf("%w: a control group of its own", ErrForbidden)
	}
	return v.checkCreds(t.GetCreds())
}

// Fields of creds_entry since CRIU 4.1 (images/creds.proto).
const (
	fieldNoNewPrivs = 18
	fieldCapAmb     = 19
)

// allSecureBits are the bits of securebits.h that can only take rights away or
// are without effect without capabilities.
const allSecureBits = 0xff

func (v *verifier) checkCreds(c *creds.CredsEntry) error {
	noNewPrivs, ambient, err := laterCreds(c.ProtoReflect().GetUnknown())
	if err != nil {
		return err
	}
	for name, set := range map[string][]uint32{
		"inheritable": c.GetCapInh(), "permitted": c.GetCapPrm(), "effective": c.GetCapEff(), "bounding": c.GetCapBnd(), "ambient": ambient,
	} {
		if len(set) > 2 || len(set) < 2 && name != "ambient" {
			return fmt.Errorf("%w: the %s capabilities have %d words", ErrCorrupt, name, len(set))
		}
		var all uint64
		for i, word := range set {
			all |= uint64(word) << (32 * i)
		}
		if more := all &^ v.policy.Capabilities; more != 0 {
			return fmt.Errorf("%w: capability %d is in the %s set", ErrForbidden, bits.TrailingZeros64(more), name)
		}
	}
	if v.policy.NoNewPrivileges && !noNewPrivs {
		return fmt.Errorf("%w: new privileges are possible", ErrForbidden)
	}
	if c.GetSecbits()&^allSecureBits != 0 {
		return fmt.Errorf("%w: unknown secure bits %#x", ErrForbidden, c.GetSecbits())
	}
	if c.GetLsmProfile() != "" || c.GetLsmSockcreate() != "" || len(c.GetApparmorData()) > 0 {
		return fmt.Errorf("%w: a security profile of its own", ErrForbidden)
	}
	return nil
}

// laterCreds reads the fields that go-criu does not know yet. That unknown ones
// are well-formed and are these has been checked.
func laterCreds(unknown []byte) (noNewPrivs bool, ambient []uint32, err error) {
	for len(unknown) > 0 {
		number, kind, tag := protowire.ConsumeTag(unknown)
		value := unknown[tag:]
		size := protowire.ConsumeFieldValue(number, kind, value)
		unknown = unknown[tag+size:]
		switch kind {
		case protowire.VarintType:
			n, _ := protowire.ConsumeVarint(value)
			if number == fieldNoNewPrivs {
				noNewPrivs = n != 0
			} else {
				ambient = append(ambient, uint32(n))
			}
		case protowire.BytesType:
			packed, _ := protowire.ConsumeBytes(value)
			for number == fieldCapAmb && len(packed) > 0 {
				n, size := protowire.ConsumeVarint(packed)
				if size < 0 {
					return false, nil, fmt.Errorf("%w: %w", ErrCorrupt, protowire.ParseError(size))
				}
				ambient, packed = append(ambient, uint32(n)), packed[size:]
			}
			if number != fieldCapAmb {
				return false, nil, fmt.Errorf("%w: malformed credentials", ErrCorrupt)
			}
		default:
			return false, nil, fmt.Errorf("%w: malformed credentials", ErrCorrupt)
		}
	}
	return noNewPrivs, ambient, nil
}

// Areas of memory (criu/include/image.h) that a pod can have no business with:
// those of packet sockets, probes and CRIU's plugins, and marks that CRIU uses
// only in memory.
const forbiddenAreas = 1<<11 | 1<<17 | 1<<27 | 1<<28 | 1<<29 | 1<<30 | 1<<31

// guardArea marks areas that are listed after all others, within them.
const guardArea = 1 << 16

// topOfMemory is above all that a process on any machine may map (57 bits).
const topOfMemory = 1 << 56

// checkMemory looks at a process's address space. The order of its areas
// matters: CRIU puts its own code, which runs with all rights, where they leave
// room.
func (v *verifier) checkMemory(pid uint32) error {
	entry, err := readOne[mm.MmEntry](v, fmt.Sprintf("mm-%d.img", pid), "MM")
	if err != nil {
		return err
	}
	var end uint64
	guards := false
	for _, area := range entry.GetVmas() {
		status := area.GetStatus()
		guard := status&guardArea != 0
		vsyscall := status&(1<<2) != 0 // at the very top
		switch {
		case status&forbiddenAreas != 0:
			return fmt.Errorf("%w: memory of kind %#x", ErrForbidden, status)
		case area.GetStart()%pageSize != 0 || area.GetEnd()%pageSize != 0 || area.GetEnd() <= area.GetStart():
			return fmt.Errorf("%w: memory from %#x to %#x", ErrCorrupt, area.GetStart(), area.GetEnd())
		case area.GetEnd() > topOfMemory && !vsyscall:
			return fmt.Errorf("%w: memory up to %#x", ErrForbidden, area.GetEnd())
		case guards && !guard:
			return fmt.Errorf("%w: memory at %#x is not in order", ErrForbidden, area.GetStart())
		case guard:
			guards = true
			continue
		case area.GetStart() < end:
			return fmt.Errorf("%w: memory at %#x is not in order", ErrForbidden, area.GetStart())
		}
		end = area.GetEnd()
	}
	return nil
}
