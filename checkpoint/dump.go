package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
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
	pages *net.UnixConn
	// out is where frames are written to if pages are streamed.
	out *frameWriter
	// shared is the shared memory that podd carries, or nil.
	shared *sharedDump
	// leftOut is shared with CRIU if something may be left out.
	leftOut *leftOutTable
	// ahead is what was sent before the freeze; nil if nothing was.
	ahead *aheadPages
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
		ours, theirs, err := socketPair(unix.SOCK_STREAM)
		if err != nil {
			return err
		}
		defer theirs.Close()
		d.pages, d.out = ours, newFrameWriter(d.options.Pages)
		wo.files = []*os.File{theirs}
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

// Run dumps the pod and returns at the hold: the image is complete, the page
// stream sent, the pod frozen, its network blocked. On an error, which ctx may
// cause at any time, the pod runs again as if nothing had happened and the
// Dump is over. The error contains a *CRIUError if CRIU was the one to fail.
func (d *Dump) Run(ctx context.Context) (*DumpResult, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.state != dumpPrepared {
		return nil, fmt.Errorf("running the dump: %w", ErrState)
	}
	opts, err := d.criuOptions()
	if err != nil {
		return nil, d.fail(err)
	}
	if err := d.sendAhead(ctx); err != nil {
		return nil, fmt.Errorf("dumping the pod: %w", d.fail(err))
	}
	pages := d.startPages(ctx)
	result, err := d.run(ctx, opts, pages)
	if err != nil {
		err = d.fail(err)
		if pages != nil {
			// The socket is closed; what may still wait is the writer.
			d.interruptPages()
			if r := <-pages; errors.Is(r.err, errSendPages) && ctx.Err() == nil {
				// That is why CRIU failed.
				err = errors.Join(r.err, err)
			}
		}
		return nil, fmt.Errorf("dumping the pod: %w", err)
	}
	d.state = dumpHeld
	return result, nil
}

func (d *Dump) criuOptions() (*rpc.CriuOpts, error) {
	opts, err := d.op.options(d.engine, dumpLog)
	if err != nil {
		return nil, err
	}
	opts.Pid = proto.Int32(int32(d.options.PID))
	if d.options.FreezeCgroup != "" {
		if d.seizeRunning, err = stoppedInRefrigerator(d.options.PID, d.options.FreezeCgroup); err != nil {
			return nil, err
		}
		if !d.seizeRunning {
			opts.FreezeCgroup = proto.String(d.options.FreezeCgroup)
		}
	}
	for mountPoint, key := range d.options.ExternalMounts {
		opts.External = append(opts.External, fmt.Sprintf("mnt[%s]:%s", mountPoint, key))
	}
	if d.pages != nil {
		opts.Ps = &rpc.CriuPageServerInfo{Fd: proto.Int32(firstWorkerFile)}
	}
	return opts, nil
}

func (d *Dump) run(ctx context.Context, opts *rpc.CriuOpts, pages chan pagesResult) (result *DumpResult, err error) {
	if d.leftOut != nil && d.engine.pageFilter != "" {
		d.flags = readLargeFlags(d.options.FreezeCgroup)
	}
	if err := d.worker.send(&rpc.CriuReq{Type: rpc.CriuReqType_DUMP.Enum(), Opts: opts}); err != nil {
		return nil, err
	}
	result = new(DumpResult)
	wait := ctx
	leaving, cancel := context.WithCancel(ctx)
	var left <-chan error     // from leaveOut
	var beside sync.WaitGroup // what goes on beside CRIU
	defer func() {
		if cancel(); left != nil {
			<-left
		}
		if err != nil && d.shared != nil && d.shared.begun {
			d.interruptPages() // or else that might wait for the target
		}
		beside.Wait()
	}()
	for {
		m, err := d.worker.receive(wait)
		if err != nil {
			return nil, err
		}
		wait, d.seizing = ctx, false
		if m.file != nil {
			m.file.Close()
		}
		switch m.notification() {
		case "":
			return nil, errDumpFailed
		case "pre-dump":
			if ready := d.options.Hooks.Ready; ready != nil {
				err = ready(ctx)
			}
			if err == nil {
				result.FrozenAt, err = d.freezeBetweenSpawns(ctx)
				result.Freeze = time.Since(result.FrozenAt)
			}
			if err == nil {
				err = d.joinProcessor()
			}
			if err == nil && d.seizeRunning {
				err = d.options.Hooks.Thaw()
			}
			if err == nil && !d.seizeRunning {
				left = d.leaveOut(leaving, &beside)
			}
			if err == nil {
				limited, cancel := context.WithTimeoutCause(ctx, seizeLimit, errSeize)
				defer cancel()
				wait, d.seizing = limited, true
			}
		case "query-ext-files":
			if d.seizeRunning {
				left = d.leaveOut(leaving, &beside)
			}
			d.blocked = true
			if err = d.options.Hooks.Block(); err != nil {
				err = fmt.Errorf("blocking the pod's network: %w", err)
			} else if err = <-left; err == nil {
				err = dropNotifications(d.options.PID, d.options.FreezeCgroup)
			}
		case "post-dump":
			return result, d.hold(ctx, result, pages)
		}
		if err != nil {
			return nil, err
		}
		if err := d.worker.answer(true); err != nil {
			return nil, err
		}
	}
}

// leaveOut tells CRIU what memory to leave out: what is shared, what the caller carries, and what is compared
// with pages sent ahead. That and the description of mappings go on beside CRIU. An error, or nil, comes before the channel is closed.
func (d *Dump) leaveOut(ctx context.Context, beside *sync.WaitGroup) <-chan error {
	done := make(chan error, 1)
	go func() {
		defer close(done)
		if d.leftOut == nil {
			return
		}
		var carried, claimed []MemoryRange
		var err error
		if d.shared != nil {
			err = d.shared.freeze(ctx, d.out, beside)
		}
		if err == nil && d.options.LeaveOut != nil {
			carried, err = d.options.LeaveOut(ctx)
		}
		if err == nil && d.ahead != nil {
			claimed, err = d.ahead.claim()
		}
		if err == nil {
			err = d.leftOut.set(carried, claimed)
		}
		if err == nil {
			described := d.describeLarge(carried)
			beside.Go(func() { d.describeOthers(ctx, described) })
		}
		if err == nil && d.ahead != nil {
			beside.Go(func() { d.ahead.compare(ctx) })
		}
		if err != nil {
			done <- fmt.Errorf("leaving memory out: %w", err)
		}
	}()
	return done
}

// joinProcessor has CRIU run where the frozen processes are.
func (d *Dump) joinProcessor() error {
	if d.options.FreezeCgroup == "" {
		return nil
	}
	freezer, err := NewFreezer(d.options.FreezeCgroup)
	if err != nil {
		return err
	}
	return freezer.cpuset().join(d.worker.pid())
}

// seizeLimit bounds the wait for CRIU to stop all processes. CRIU has a limit of
// its own, seizeTimeout, but does not notice it while the kernel makes it wait.
const seizeLimit = 2 * seizeTimeout * time.Second

// errSeize means that CRIU did not get hold of all processes in time.
var errSeize = fmt.Errorf("CRIU could not stop the pod's processes within %v", seizeLimit)

// errDumpFailed means CRIU reported a failure; the reason is in its log.
var errDumpFailed = errors.New("CRIU failed")

func (d *Dump) freeze(ctx context.Context) error {
	d.froze = true
	if err := d.options.Hooks.Freeze(ctx); err != nil {
		return fmt.Errorf("freezing the pod: %w", err)
	}
	return nil
}

// hold completes the result while CRIU waits at post-dump.
func (d *Dump) hold(ctx context.Context, result *DumpResult, pages chan pagesResult) error {
	if err := d.freeze(ctx); err != nil {
		return err
	}
	if pages != nil {
		// CRIU says the end of the stream before post-dump and waits for
		// the answer, so this does not wait.
		r := <-pages
		// For Run, which looks there after a failure.
		pages <- r
		if r.err != nil {
			return r.err
		}
		result.Pages = r.stats
	}
	if err := d.checkLeftOut(result); err != nil {
		return err
	}
	var err error
	if result.Processes, result.Connections, err = inventory(d.options.ImagesDir); err != nil {
		return err
	}
	result.Dump = time.Since(result.FrozenAt)
	d.log.Debug("pod is dumped and held", "freeze", result.Freeze, "dump", result.Dump, "pages", result.Pages.Pages)
	return nil
}

// checkLeftOut sees whether memory was left out that was to be.
func (d *Dump) checkLeftOut(result *DumpResult) error {
	if d.leftOut == nil {
		return nil
	}
	var dumped int64
	if result.LeftOut, dumped = d.leftOut.cut(); dumped > 0 {
		d.log.Warn("CRIU dumped memory that it need not have", "bytes", dumped, "filter", d.engine.pageFilter)
	}
	if result.LeftOut == 0 {
		return nil
	}
	d.log.Debug("memory was left out", "bytes", result.LeftOut, "mappings-described", d.leftOut.textsRead())
	return markLeftOut(d.options.ImagesDir, d.leftOut.absent())
}
