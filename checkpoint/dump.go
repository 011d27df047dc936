package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// DumpHooks are what the caller does to the pod at the right moment of a dump.
// All but Ready must be given, and all but that must bear being called again.
type DumpHooks struct {
	// Ready is called once, when nothing is left to do before the first Freeze.
	Ready func(ctx context.Context) error
	// Freeze stops all processes of the pod and returns when they are
	// stopped. It is called when CRIU is about to seize them, and again
	// when everything is dumped.
	Freeze func(ctx context.Context) error
	// Thaw undoes Freeze.
	Thaw func() error
	// Block stops the pod's packets in both directions, silently. The pod
	// is frozen when it is called. Loopback must stay usable.
	Block func() error
	// Unblock undoes Block. It is not called after a commit: the caller
	// keeps the network blocked until the namespace is gone.
	Unblock func() error
}

// DumpOptions say what to dump and where to.
type DumpOptions struct {
	// PID is the pod's init, as this process sees it.
	PID int
	// NetNS is the path of the pod's network namespace; empty means that of
	// PID. CRIU runs in it, so that it does not dump the namespace itself.
	NetNS string
	// ImagesDir receives the image files, WorkDir CRIU's log. Both must
	// exist; the images are best kept on a tmpfs.
	ImagesDir, WorkDir string
	// Pages receives the page stream; nil keeps the pages in ImagesDir. Its
	// Write must return when the context given to Run is done. If it has
	// SetWriteDeadline, as a net.Conn has, Run sees to that; it can't be
	// written to after Run failed then.
	Pages io.Writer
	// Ahead has Run begin with sending private pages of files while the pod still
	// runs, so that those which don't change until it is frozen need not be sent then.
	// It needs Pages and FreezeCgroup.
	Ahead bool
	// EarlyImages has Run send images in the page stream as soon as CRIU has written them.
	// They go to an ImageStore, and SendImages sends the others. It needs Pages.
	EarlyImages bool
	// Shared has podd carry the memory that processes share, at both ends: the reader
	// of Pages must give ReceivePages a place for it. Most of it is sent while the pod
	// runs, by SendAhead, the rest beside CRIU's dump. It needs Pages and FreezeCgroup.
	// Where Engine.CanLeaveOut returns an error CRIU dumps it.
	Shared bool
	// LeaveOut returns memory that is not dumped, because the caller carries it
	// to the target by other means and fills it in there (RestoreOptions.Lazy):
	// parts of private anonymous mappings that are not locked, and of ordinary
	// pages. It is called once the pod is frozen, beside what CRIU does before it
	// looks at memory; the processes may be traced already. Nil leaves nothing
	// out. It needs Pages. Where Engine.CanLeaveOut returns an error the pages are
	// dumped nevertheless, which does no harm but takes time.
	LeaveOut func(ctx context.Context) ([]MemoryRange, error)
	// ExternalMounts names the mounts of the pod whose content is not part of
	// the image: from the mount point in the pod to a key, by which
	// RestoreOptions.ExternalMounts finds it.
	ExternalMounts map[string]string
	// FreezeCgroup is the directory of the cgroup that Hooks.Freeze
	// freezes (Freezer.Dir).
	FreezeCgroup string
	Hooks        DumpHooks
	// Log overrides the engine's.
	Log *slog.Logger
}

// DumpResult is what a dump measured.
type DumpResult struct {
	// FrozenAt is when the freeze began: no process of the pod runs from
	// about then on. Attempts that were given up, because a program was just
	// being started, came before.
	FrozenAt time.Time
	// Freeze is how long freezing took, Dump how long everything from
	// FrozenAt to the hold.
	Freeze, Dump time.Duration
	// Pages is zero when DumpOptions.Pages was nil.
	Pages PageStats
	// LeftOut is how much of the memory that LeaveOut named was in fact left
	// out, in bytes of address space.
	LeftOut int64
	// Processes is the number of processes, Connections that of TCP
	// connections, established or half-closed.
	Processes, Connections int
}

// Dump is one dump. Run, then Commit or Abort; without Run only Abort.
type Dump struct {
	engine  *Engine
	log     *slog.Logger
	options DumpOptions
	op      *operation
	worker  *worker
	// initFD is a pidfd of the pod's init, so that it can be killed without
	// the risk of hitting another process.
	initFD *os.File
	// pages is our end of CRIU's page socket.
	pages *pageSocket
	// out is where frames are written to if pages are streamed.
	out *frameWriter
	// shared is the shared memory that podd carries, or nil.
	shared *sharedDump
	// leftOut is shared with CRIU if something may be left out.
	leftOut *leftOutTable
	// ahead is what was sent before the freeze; nil if nothing was.
	ahead *aheadPages
	// early sends images while others are written; nil if that was not asked for.
	early *earlyImages
	// numbers are those of processes in the pod, by our own; they belong to memory that
	// is left out.
	numbers func() (map[int]int, error)
	// flags are those of the mappings of large processes, from just before.
	flags map[int]mappingFlags

	mu    sync.Mutex
	state dumpState
	// What was asked of the hooks and so must be undone.
	froze, blocked bool
	// seizeRunning says that CRIU stops the processes itself, one by one.
	seizeRunning bool
	// seizing is true while CRIU gets hold of the processes.
	seizing bool
}

type dumpState int

const (
	dumpPrepared dumpState = iota
	dumpHeld
	dumpOver
)

// ErrState means that a method was called that the dump or restore is not
// ready for, such as Commit without a hold.
var ErrState = errors.New("not possible in this state")

// PrepareDump starts CRIU for a dump. The pod is not touched.
func (e *Engine) PrepareDump(ctx context.Context, options DumpOptions) (*Dump, error) {
	d := &Dump{engine: e, options: options, log: options.Log}
	if d.log == nil {
		d.log = e.log
	}
	if d.options.NetNS == "" {
		d.options.NetNS = fmt.Sprintf("/proc/%d/ns/net", options.PID)
	}
	if err := d.prepare(ctx); err != nil {
		d.release()
		return nil, fmt.Errorf("preparing the dump: %w", err)
	}
	return d, nil
}

func (d *Dump) prepare(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if h := d.options.Hooks; h.Freeze == nil || h.Thaw == nil || h.Block == nil || h.Unblock == nil {
		return errors.New("a hook is missing")
	}
	if d.options.LeaveOut != nil && d.options.Pages == nil {
		return errors.New("memory is to be left out, but pages are not streamed")
	}
	fd, err := unix.PidfdOpen(d.options.PID, 0)
	if err != nil {
		return fmt.Errorf("finding process %d: %w", d.options.PID, err)
	}
	d.initFD = os.NewFile(uintptr(fd), "pidfd")
	if d.op, err = openOperation(d.options.ImagesDir, d.options.WorkDir); err != nil {
		return err
	}
	output, err := d.op.output()
	if err != nil {
		return err
	}
	defer output.Close()
	wo := workerOptions{netNS: d.options.NetNS, output: output, log: d.log}
	if d.options.Pages != nil {
		ours, theirs, err := newPageSocket()
		if err != nil {
			return err
		}
		defer theirs.Close()
		d.pages, d.out = ours, newFrameWriter(d.options.Pages)
		wo.files = []*os.File{theirs, ours.bell}
	}
	if d.options.Shared && d.pages != nil && d.options.FreezeCgroup != "" && d.engine.pageFilter != "" {
		if d.shared, err = newSharedDump(d.options.FreezeCgroup); err != nil {
			return err
		}
		wo.shared = d.shared.table
	}
	if d.options.LeaveOut != nil || d.options.Ahead || d.shared != nil {
		if d.leftOut, err = newLeftOutTable(); err != nil {
			return err
		}
		if d.engine.pageFilter != "" {
			wo.leftOut = d.leftOut
		}
	}
	d.worker, err = d.engine.startWorker(wo)
	return err
}

// release ends CRIU and closes everything.
func (d *Dump) release() {
	if d.pages != nil {
		d.pages.Close()
	}
	if d.worker != nil {
		d.worker.stop()
	}
	if d.early != nil {
		if err := d.early.close(); err != nil {
			d.log.Warn("ending the watch of the images failed", "error", err)
		}
		d.early = nil
	}
	if d.op != nil {
		if err := d.op.close(); err != nil {
			d.log.Warn("closing image directories failed", "error", err)
		}
	}
	if d.initFD != nil {
		d.initFD.Close()
	}
	if d.leftOut != nil {
		if err := d.leftOut.close(); err != nil {
			d.log.Warn("closing the table of memory left out failed", "error", err)
		}
		d.leftOut = nil
	}
	if d.shared != nil {
		if err := d.shared.close(); err != nil {
			d.log.Warn("letting go of shared memory failed", "error", err)
		}
		d.shared = nil
	}
}

// Exited is closed when CRIU has ended. During a hold that means that
// something killed it: the pod is still frozen, Abort and Commit still work.
func (d *Dump) Exited() <-chan struct{} { return d.worker.exited }
