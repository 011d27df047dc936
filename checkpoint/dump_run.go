package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"google.golang.org/protobuf/proto"
)

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
	d.startImages()
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
		if d.early != nil {
			if err != nil {
				d.interruptPages()
			}
			d.early.end()
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
			return nil, errCRIUFailed
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
		if err := d.worker.answer(); err != nil {
			return nil, err
		}
	}
}

// leaveOut tells CRIU what memory to leave out: what is shared, what the caller carries, and
// what is compared with pages sent ahead. That and the description of mappings go on
// beside CRIU. An error, or nil, comes before the channel is closed.
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
			numbers := sync.OnceValues(func() (map[int]int, error) { return numbersInPod(carried) })
			beside.Go(func() { numbers() }) // hold asks for them
			d.numbers = numbers
			described := d.describeLarge(carried)
			beside.Go(func() {
				// First what CRIU asks for and does not wait for. What is compared it needs
				// at its end only.
				d.describeOthers(ctx, described)
				if d.ahead != nil {
					d.ahead.compare(ctx)
				}
			})
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
	numbers, err := d.numbers()
	if err != nil {
		return err
	}
	return markLeftOut(d.options.ImagesDir, d.leftOut.absent(), numbers)
}
