package podd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	poddv1 "podd/api/podd/v1"
	"podd/checkpoint"
	"podd/directory"
	"podd/fault"
	"podd/filesync"
	"podd/namespace"
	"podd/netconn"
	"podd/pod"
	"podd/vnet"
)

const (
	// presyncPasses bounds how often the files are compared while the pod
	// runs; each pass has only what changed during the one before.
	presyncPasses = 4
	// presyncEnough is how few bytes in a pass make another one pointless.
	presyncEnough = 256 << 10
	// minFrozenLimit, and slowestLink in bytes per second, bound how long a
	// pod is frozen before its move is given up.
	minFrozenLimit = 30 * time.Second
	slowestLink    = 50 << 20
	// drainTimeout bounds the wait for a pod's programs to accept connections,
	// drainPoll is the pause between two looks.
	drainTimeout = 2 * time.Second
	drainPoll    = time.Millisecond
	// lastWords bounds the wait for the reason why the target hung up.
	lastWords = time.Second
	// cleanupTimeout bounds what is done after a move was decided.
	cleanupTimeout = 30 * time.Second
)

// sourceMove is the source's side of one move.
type sourceMove struct {
	d     *Daemon
	log   *slog.Logger
	order moveOrder
	// stop ends the move before its time, and why is the reason for an error
	// that comes of it. limitDowntime begins to count, and disarm, for a move
	// that is committed, counts no more. See bound.
	stop          func(cause error)
	why           func(err error) error
	limitDowntime func()
	disarm        func()

	pod    *localPod
	record *pod.Pod
	move   *pod.Move
	target *pod.Host
	clock  *stageClock

	network *vnet.Network
	proxy   *pod.Proxy // that holds the pod's packets; nil if it is not known
	conn    *transferConn
	files   *filesync.Source
	dump    *checkpoint.Dump
	images  string // directory
	// chosen is how the memory is carried, reasonChosen why. memory is what podd
	// carries itself, nil if CRIU carries all; memoryBytes is how much there was
	// at preflight.
	chosen       pod.Strategy
	reasonChosen string
	memory       *sourceMemory
	memoryBytes  int64
	// shared says that the target takes shared memory that podd carries itself.
	shared bool
	// sharedWait is how long the freeze was longer for that.
	sharedWait time.Duration
	// frozenLimit is how long the pod may be frozen for the transfer.
	frozenLimit time.Duration
	// asked is set just before the restore is asked for: until then the
	// target can't have committed.
	asked   bool
	receipt pod.Receipt
	// undo is what cleanup calls, in any outcome.
	undo   []func()
	frozen time.Time
}

// movePod moves a pod of this host to another. The move returned is the
// journal's entry, nil if none was opened. It runs to its end whatever becomes
// of the caller; only order, its limits and the end of the daemon's ctx end it
// before.
func (d *Daemon) movePod(ctx context.Context, order moveOrder, report func(progress)) (*pod.Move, error) {
	m := &sourceMove{d: d, log: d.log.With("pod", order.pod), order: order}
	m.clock = newStageClock(m.log, report)
	ctx, unbound := m.bound(ctx)
	defer unbound()
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	d.tasks.Go(func() { m.clock.watch(watching) })

	m.clock.begin(pod.StagePreflight)
	if err := m.at(pod.StagePreflight); err != nil {
		return nil, fmt.Errorf("preflight: %w", err)
	}
	check, err := d.checkMove(ctx, order)
	if err != nil {
		return nil, fmt.Errorf("preflight: %w", m.why(err))
	}
	if err := m.take(check); err != nil {
		m.count(err)
		return nil, err
	}
	// From here on the pod is this move's, except while it waits in the queue:
	// stop, kill and a second move wait or are refused.
	release, err := m.seize(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { release() }()
	if m.move, err = d.dir.BeginMove(ctx, order.pod, order.target, order.strategy); err != nil {
		err = fmt.Errorf("reserve: %w", m.why(err))
		if unknown := m.move; unknown != nil {
			d.background(func(ctx context.Context) { d.abortUnknown(ctx, unknown.ID, err) })
		}
		return nil, err
	}
	m.clock.opened(m.move.ID)
	m.log = m.log.With("move", m.move.ID)
	if m.move.State == pod.MoveQueued {
		release()
		if release, err = m.queue(ctx); err != nil {
			return m.end(m.fail(err))
		}
	}
	defer m.pod.beginMove()()
	m.log.Info("move begins", "target", order.target)
	if err := m.run(ctx); err != nil {
		if err = m.fail(err); err != nil {
			return m.end(err)
		}
	}
	if m.followMemory() {
		m.finish()
	} else {
		m.leave()
	}
	return m.end(nil)
}

// seize takes the pod for the move alone, until release is called.
func (m *sourceMove) seize(ctx context.Context) (release func(), err error) {
	end, err := m.d.claim(ctx, m.order.pod)
	if err != nil {
		return nil, m.why(err)
	}
	m.pod.mu.Lock()
	release = func() { m.pod.mu.Unlock(); end() }
	if m.pod.over() {
		release()
		return nil, fmt.Errorf("pod %s: %w: it has just ended or moved", m.order.pod, pod.ErrConflict)
	}
	return release, nil
}

// take notes what preflight found, or refuses the move.
func (m *sourceMove) take(check *moveCheck) error {
	if len(check.blockers) > 0 {
		return &blockedError{pod: m.order.pod, blockers: check.blockers}
	}
	m.pod, m.record, m.target = check.local, check.pod, check.target
	m.receipt.Processes, m.memoryBytes = check.processes, check.memoryBytes
	m.frozenLimit = minFrozenLimit + time.Duration(check.memoryBytes/slowestLink)*time.Second
	return nil
}

// end is what movePod returns: err, and the journal's entry as it is now, or as
// it was last known.
func (m *sourceMove) end(err error) (*pod.Move, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.d.ctx), cleanupTimeout)
	defer cancel()
	if move, err2 := m.d.dir.Move(ctx, m.move.ID); err2 == nil {
		return move, err
	}
	return m.move, err
}

// run goes through the stages up to the commit. It returns nil when the
// target has committed.
func (m *sourceMove) run(ctx context.Context) error {
	// Until the commit the move ends when somebody cancels it, the target is
	// gone, or podd stops.
	dismiss := m.d.guardMove(m.move, m.move.Target, m.stop)
	m.undo = append(m.undo, dismiss)
	m.clock.begin(pod.StageReserve)
	var err error
	if m.network, err = m.d.net(ctx); err != nil {
		return err
	}
	if err := m.reserve(ctx); err != nil {
		return err
	}
	if err := m.begin(ctx, pod.StagePresync); err != nil {
		return err
	}
	for range presyncPasses {
		sent, err := m.syncFiles(ctx, false)
		m.receipt.PresyncFileBytes += sent
		if err != nil {
			return err
		}
		if sent < presyncEnough {
			break
		}
	}
	if err := m.passMemory(ctx); err != nil {
		return err
	}
	if err := m.prepareDump(ctx); err != nil {
		return err
	}
	if err := m.sendAhead(ctx); err != nil {
		return err
	}
	if err := m.d.dir.ChooseStrategy(ctx, m.move.ID, m.chosen, m.reasonChosen); err != nil {
		return err
	}
	if err := m.begin(ctx, pod.StageHold); err != nil {
		return err
	}
	if err := m.prepareHold(ctx); err != nil {
		return err
	}
	// A target that stops answering must not keep the pod frozen for ever.
	err = errors.Join(m.conn.SetDeadline(time.Now().Add(m.frozenLimit)), netconn.LimitSilence(m.conn.Conn, frozenSilence))
	if err != nil {
		return fmt.Errorf("talking to host %s: %w", m.move.Target, err)
	}
	if err := m.freezeAndDump(ctx); err != nil {
		return err
	}
	m.clock.begin(pod.StageTransfer)
	if err := m.at(pod.StageTransfer); err != nil {
		return err
	}
	if err := m.transfer(ctx); err != nil {
		return err
	}
	if err := m.completeMemory(ctx); err != nil {
		return err
	}
	m.clock.begin(pod.StageRestore)
	if err := m.at(pod.StageRestore); err != nil {
		return err
	}
	return m.restore()
}

// at lets a test make this side fail.
func (m *sourceMove) at(point pod.Stage) error {
	if m.conn == nil {
		return fault.At("source:"+string(point), nil)
	}
	return fault.At("source:"+string(point), m.conn)
}

// begin also writes the stage into the journal. It is used while the pod
// runs; afterwards a write would lengthen the freeze.
func (m *sourceMove) begin(ctx context.Context, stage pod.Stage) error {
	m.clock.begin(stage)
	if err := m.at(stage); err != nil {
		return err
	}
	err := m.d.dir.SetMoveStage(ctx, m.move.ID, stage)
	if errors.Is(err, directory.ErrAborted) {
		return err
	}
	if err != nil {
		m.log.Warn("writing the stage into the journal failed", "stage", stage, "error", err)
	}
	return nil
}

func (m *sourceMove) send(message *poddv1.SourceMessage) error {
	if err := m.conn.send(message); err != nil {
		return fmt.Errorf("talking to host %s: %w", m.move.Target, err)
	}
	return nil
}

// reserve connects to the target and waits until everything there is ready.
func (m *sourceMove) reserve(ctx context.Context) error {
	peers, done := m.d.peersFor(m.order.strategy, m.move.ID)
	defer done()
	conn, err := dialTransfer(ctx, peers, m.target.Name)
	if err != nil {
		return m.d.advise(err, m.order)
	}
	m.conn = conn
	// The conversation has no deadline of its own while bytes flow.
	keep := context.AfterFunc(ctx, func() { conn.abandon(context.Cause(ctx)) })
	m.undo = append(m.undo, func() { keep(); conn.Close() })
	if err := m.at(pod.StageReserve); err != nil {
		return err
	}
	if err := m.openMemory(ctx); err != nil {
		return err
	}
	err = m.send(&poddv1.SourceMessage{Message: &poddv1.SourceMessage_Reserve{
		Reserve: &poddv1.Reserve{Protocol: transferVersion, Move: m.move.ID, Carry: m.memory != nil},
	}})
	if err != nil {
		return err
	}
	reply, err := m.conn.expect()
	if err != nil {
		return err
	}
	if reply.GetReserved() == nil {
		return fmt.Errorf("talking to host %s: unexpected answer to reserve", m.move.Target)
	}
	m.shared = reply.GetReserved().GetShared()
	if err := m.connectMemory(ctx, reply.GetReserved().GetUnable()); err != nil {
		return err
	}
	m.files = filesync.NewSource(fileTrees(m.pod.container), m.log)
	return nil
}

// syncFiles sends one pass of the files and returns its bytes.
func (m *sourceMove) syncFiles(ctx context.Context, final bool) (int64, error) {
	err := m.send(&poddv1.SourceMessage{Message: &poddv1.SourceMessage_Files{Files: &poddv1.Files{Final: final}}})
	if err != nil {
		return 0, err
	}
	stats, err := m.files.Sync(ctx, m.clock.count(m.conn), final)
	if err != nil {
		return stats.Bytes, fmt.Errorf("sending files to host %s: %w", m.move.Target, err)
	}
	if err := m.conn.writer.Flush(); err != nil {
		return stats.Bytes, fmt.Errorf("sending files to host %s: %w", m.move.Target, err)
	}
	reply, err := m.conn.expect()
	if err != nil {
		return stats.Bytes, err
	}
	if reply.GetFilesApplied() == nil {
		return stats.Bytes, fmt.Errorf("talking to host %s: unexpected answer to files", m.move.Target)
	}
	return stats.Bytes, nil
}

// prepareDump starts CRIU, so that its start-up is over when the pod freezes.
func (m *sourceMove) prepareDump(ctx context.Context) error {
	m.images = m.d.imagesOf(sourceImages, m.move.Pod, m.move.SourceEpoch)
	work := filepath.Join(m.images, "work")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return fmt.Errorf("making a directory for images: %w", err)
	}
	if err := m.send(&poddv1.SourceMessage{Message: &poddv1.SourceMessage_Memory{Memory: &poddv1.Memory{}}}); err != nil {
		return err
	}
	container, nsPath := m.pod.container, m.d.netnsPath(m.move.Pod, m.move.SourceEpoch)
	pid, running := container.PID()
	if !running {
		return fmt.Errorf("%w: the pod has ended", pod.ErrPhase)
	}
	freezer, err := checkpoint.NewFreezer(container.FreezerDir())
	if err != nil {
		return err
	}
	options := checkpoint.DumpOptions{
		PID:            pid,
		NetNS:          nsPath,
		ImagesDir:      m.images,
		WorkDir:        work,
		Pages:          m.clock.count(m.conn),
		Ahead:          true,
		EarlyImages:    true,
		Shared:         m.shared,
		ExternalMounts: keys(container.ExternalMounts()),
		FreezeCgroup:   freezer.Dir(),
		Log:            m.log,
		Hooks: checkpoint.DumpHooks{
			Ready: m.hold,
			Freeze: func(ctx context.Context) error {
				if m.frozen.IsZero() {
					m.clock.begin(pod.StageFreeze)
					m.frozen = time.Now()
					m.limitDowntime()
					if err := m.at(pod.StageFreeze); err != nil {
						return err
					}
				}
				return freezer.Freeze(ctx)
			},
			Thaw: freezer.Thaw,
			Block: func() error {
				m.clock.begin(pod.StageDump)
				return errors.Join(m.network.Block(nsPath), m.at(pod.StageDump))
			},
			Unblock: func() error { return m.network.Unblock(nsPath) },
		},
	}
	if m.memory != nil {
		options.LeaveOut = m.leaveOut
	}
	if m.dump, err = m.d.engine.PrepareDump(ctx, options); err != nil {
		return fmt.Errorf("starting CRIU: %w", err)
	}
	return nil
}

// sendAhead sends memory that CRIU would otherwise carry, and that probably does not change
// any more.
func (m *sourceMove) sendAhead(ctx context.Context) error {
	stats, err := m.dump.SendAhead(ctx)
	m.receipt.CarriedBytes += stats.Scanned
	m.receipt.PrecopyBytes += stats.Changed
	if err == nil {
		err = m.conn.writer.Flush()
	}
	if err != nil {
		return fmt.Errorf("sending memory to host %s: %w", m.move.Target, err)
	}
	return nil
}

// keys names every external mount by its own mount point, which is the same on
// any host.
func keys(mounts map[string]string) map[string]string {
	named := make(map[string]string, len(mounts))
	for destination := range mounts {
		named[destination] = destination
	}
	return named
}

// fileTrees are the directories a move carries.
func fileTrees(container *namespace.Container) []filesync.Tree {
	var trees []filesync.Tree
	for _, t := range container.Trees() {
		// Device nodes are in /dev, which podd has made.
		options := filesync.Options{Devices: t.Name == namespace.VolatileTree}
		trees = append(trees, filesync.Tree{Name: t.Name, Path: t.Path, Options: options})
	}
	return trees
}
