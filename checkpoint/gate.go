package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/checkpoint-restore/go-criu/v7/rpc"
	"google.golang.org/protobuf/proto"
)

// CRIU reads its configuration and tries what the kernel can do once it is asked to restore. That
// takes 2 ms, so it is asked before there are images, and the preloaded library has it wait where it
// opens the first of them (pagefilter/gate.c).

// gateVariable tells the library the descriptor by which it says that CRIU waits, and hears that it
// may go on: one byte each.
const gateVariable = "PODD_GATE"

// gateTimeout is how long CRIU may take to come to the gate.
const gateTimeout = 10 * time.Second

// errNotGated means that CRIU does not wait for the images.
var errNotGated = errors.New("CRIU does not wait for the images")

// awaitGate returns when CRIU, which was told to restore, waits.
func (w *worker) awaitGate(ctx context.Context) error {
	if err := w.gate.SetReadDeadline(time.Now().Add(gateTimeout)); err != nil {
		return fmt.Errorf("%w: %w", errNotGated, err)
	}
	stop := context.AfterFunc(ctx, func() { w.gate.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if n, err := w.gate.Read(make([]byte, 1)); n != 1 {
		return fmt.Errorf("%w: %w", errNotGated, errors.Join(err, context.Cause(ctx)))
	}
	return nil
}

// openGate lets CRIU open images.
func (w *worker) openGate() error {
	if _, err := w.gate.Write([]byte{0}); err != nil {
		return fmt.Errorf("%w: %w", errWorkerGone, err)
	}
	return nil
}

// askEarly starts CRIU and asks it to restore what is not there yet. If it does not wait for
// that, another one is there to be asked later.
func (r *Restore) askEarly(ctx context.Context) error {
	gated := r.engine.canLeaveOut() == nil
	if err := r.startCRIU(gated); err != nil || !gated {
		return err
	}
	asLazy := r.lazy != nil && !r.mayBeInPlace
	err := r.ask(asLazy)
	if err == nil {
		err = r.worker.awaitGate(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		r.log.Warn("CRIU is asked to restore when the images are here, which takes longer", "error", err)
		r.worker.stop()
		return r.startCRIU(false)
	}
	r.asked, r.asLazy = true, asLazy
	return nil
}

// letBegin has CRIU restore the images, which are complete.
func (r *Restore) letBegin(lazy bool) error {
	if r.asked && r.asLazy == lazy {
		r.requested = true
		return r.worker.openGate()
	}
	if r.asked {
		// The images are not what podd makes now.
		r.worker.stop()
		if err := r.startCRIU(false); err != nil {
			return err
		}
	}
	r.requested = true
	return r.ask(lazy)
}

// ask asks CRIU to restore, and with lazy also to register memory that Lazy fills in.
func (r *Restore) ask(lazy bool) error {
	opts, err := r.op.options(r.engine, restoreLog)
	if err != nil {
		return err
	}
	opts.Root = proto.String(r.options.Root)
	// Init becomes our child, not CRIU's.
	opts.RstSibling = proto.Bool(true)
	for key, path := range r.options.ExternalMounts {
		opts.External = append(opts.External, fmt.Sprintf("mnt[%s]:%s", key, path))
	}
	if lazy {
		opts.LazyPages = proto.Bool(true)
	}
	return r.worker.send(&rpc.CriuReq{Type: rpc.CriuReqType_RESTORE.Enum(), Opts: opts})
}
