package podd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	poddv1 "podd/api/podd/v1"
	"podd/checkpoint"
	"podd/fault"
	"podd/filesync"
	"podd/namespace"
	"podd/pager"
	"podd/pod"
	"podd/procfs"
	"podd/sharedmem"
	"podd/vnet"
)

// targetMove is the target's side of one move.
type targetMove struct {
	d    *Daemon
	log  *slog.Logger
	conn *transferConn
	// peer is the host at the other end, as its certificate says.
	peer   string
	move   *pod.Move
	record *pod.Pod

	stage     pod.Stage
	network   *vnet.Network
	container *namespace.Container
	sink      *filesync.Sink
	restore   *checkpoint.Restore
	images    string // directory
	// covered says that the host's private files are hidden in the pod's layer, and mounted that it is
	// the pod's root file system, to which only the pod may write.
	covered, mounted bool
	// imaged says that all images are here, and may be verified by now.
	imaged bool
	// received takes what comes into it.
	received *checkpoint.ImageStore
	// verifying are checks of the images that may go on.
	verifying sync.WaitGroup
	// shared keeps shared memory that comes beside the images; nil if it can't.
	shared *sharedmem.Keeper
	// pager is nil unless podd itself carries the pod's memory.
	pager *pager.Pager
	// complete says that all memory is here when the pod runs.
	complete bool
	// asked is set just before the commit is asked for: until then this move
	// can't be committed.
	asked     bool
	committed bool
	// lost says that the pod does not run although its move is committed; the
	// reconcile loop restores it again.
	lost bool
	// release ends the claim on the pod's name.
	release func()
	// stop ends the move before its time; dismiss ends the guard that does so.
	stop func(cause error)
	// later is what is to be put away at the end.
	later   []func()
	dismiss func()
}

// serveTransfer is the target's end of the connection of a move.
func (d *Daemon) serveTransfer(w http.ResponseWriter, r *http.Request) {
	conn, peer, err := acceptTransfer(w, r)
	if err != nil {
		d.log.Warn("a transfer was refused", "peer", r.RemoteAddr, "error", err)
		return
	}
	defer conn.Close()
	d.tasks.Add(1)
	defer d.tasks.Done()
	stop := context.AfterFunc(d.ctx, func() { conn.Close() })
	m := &targetMove{d: d, log: d.log, conn: conn, peer: peer, stage: pod.StageReserve, dismiss: func() { stop() }, release: func() {}}
	defer func() { m.dismiss() }()
	defer m.verifying.Wait()
	defer func() {
		m.release()
		if m.lost {
			d.wakeReconcile()
		}
	}()
	defer m.putAway()
	ctx, cancel := context.WithCancelCause(d.ctx)
	defer cancel(nil)
	m.stop = func(cause error) { cancel(cause); conn.abandon(cause) }
	if err := m.run(ctx); err != nil {
		m.fail(err)
	}
}

// at lets a test make this side fail.
func (m *targetMove) at(point pod.Stage) error { return fault.At("target:"+string(point), m.conn) }

// run follows the source's messages up to the end of the move.
func (m *targetMove) run(ctx context.Context) error {
	message := new(poddv1.SourceMessage)
	if err := m.conn.receive(message); err != nil {
		return err
	}
	reserve := message.GetReserve()
	if reserve == nil {
		return errors.New("the conversation does not begin with reserve")
	}
	if reserve.GetProtocol() != transferVersion {
		return fmt.Errorf("%w: the source speaks version %d of the transfer protocol, this host %d: run the same podd on both", pod.ErrInvalid, reserve.GetProtocol(), transferVersion)
	}
	if err := m.reserve(ctx, reserve); err != nil {
		return err
	}
	for {
		message := new(poddv1.SourceMessage)
		if err := m.conn.receive(message); err != nil {
			return err
		}
		if err := m.inOrder(message); err != nil {
			return err
		}
		switch {
		case message.GetFiles() != nil:
			m.stage = pod.StagePresync
			if message.GetFiles().GetFinal() {
				m.stage = pod.StageTransfer
			} else if err := m.at(m.stage); err != nil {
				return err
			}
			stats, err := m.sink.Apply(ctx, m.conn)
			if err != nil {
				return fmt.Errorf("writing files: %w", err)
			}
			m.covered = m.covered && !m.sink.Touched(namespace.UpperTree)
			if err := m.send(&poddv1.TargetMessage{Message: &poddv1.TargetMessage_FilesApplied{FilesApplied: &poddv1.FilesApplied{Bytes: stats.Bytes}}}); err != nil {
				return err
			}
			if message.GetFiles().GetFinal() {
				if err := m.mount(); err != nil {
					return err
				}
			}
		case message.GetMemory() != nil:
			m.stage = pod.StageDump
			if err := m.at(m.stage); err != nil {
				return err
			}
			// The pod still runs, and what is hidden now need not be when it doesn't.
			if err := m.container.Cover(); err != nil {
				return err
			}
			m.covered = true
			free, err := m.receivePages(ctx)
			m.later = append(m.later, func() { m.free(free) })
			if err != nil {
				return fmt.Errorf("receiving memory: %w", err)
			}
		case message.GetImages() != nil:
			m.stage = pod.StageTransfer
			if err := m.at(m.stage); err != nil {
				return err
			}
			if _, err := m.received.Receive(ctx, m.conn); err != nil {
				return fmt.Errorf("receiving images: %w", err)
			}
			m.imaged = true
			// They are complete, and what is left of the files is still on its way.
			m.verifying.Go(func() { _ = m.restore.Verify() }) // finish asks once more
		case message.GetRestore() != nil:
			m.complete = message.GetRestore().GetComplete()
			return m.finish(ctx)
		default:
			return errors.New("an unknown message from the source")
		}
	}
}

// inOrder refuses what comes at the wrong time: images that were verified, and the files of a layer that
// is mounted, must not change.
func (m *targetMove) inOrder(message *poddv1.SourceMessage) error {
	switch {
	case message.GetFiles() != nil && m.mounted:
		return errors.New("files come after the last")
	case (message.GetMemory() != nil || message.GetImages() != nil) && (m.imaged || m.mounted):
		return errors.New("images come after the last")
	case message.GetRestore() != nil && !(m.imaged && m.mounted):
		return errors.New("the restore is asked for before everything is here")
	}
	return nil
}

// What CRIU's images other than memory may amount to: far above any real pod.
const (
	maxImageBytes = 4 << 30
	maxImageFiles = 1 << 20
)

// pageLimits keeps a peer from filling this host's memory.
func (m *targetMove) pageLimits() checkpoint.PageLimits {
	const images = 1 << 16 // address spaces and shared memory segments
	limits := checkpoint.PageLimits{Bytes: math.MaxInt64, Images: images}
	if m.record.Spec.MemoryBytes > 0 {
		// Swapped and file-backed private pages are not counted by the limit.
		limits.Bytes = 4 * m.record.Spec.MemoryBytes
	}
	return limits
}

// catchUp is how long a pod that runs at last has the processors to itself. A low priority
// would not do: the kernel shares processors out between cgroups and sessions first.
const catchUp = 100 * time.Millisecond

// putAway does what is left to do when the move is over. That may take 100 ms of a processor,
// and a pod that runs at last has much to catch up with: so that comes first, and then it
// gets what the pod leaves.
func (m *targetMove) putAway() {
	if m.committed && !m.lost {
		select {
		case <-time.After(catchUp):
		case <-m.d.ctx.Done():
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocks: the thread ends, with its priority
		if err := procfs.Yield(0); err != nil {
			m.log.Debug("lowering the priority failed", "error", err)
		}
		for _, f := range m.later {
			f()
		}
	}()
	<-done
}

// free gives back what a stream of pages left.
func (m *targetMove) free(pages func() error) {
	if err := pages(); err != nil {
		m.log.Warn("giving back memory of the page stream failed", "error", err)
	}
}

func (m *targetMove) send(message *poddv1.TargetMessage) error {
	if err := m.conn.send(message); err != nil {
		return fmt.Errorf("talking to host %s: %w", m.move.Source, err)
	}
	return nil
}

// reserve makes everything the pod needs here except its processes.
func (m *targetMove) reserve(ctx context.Context, order *poddv1.Reserve) error {
	id := order.GetMove()
	move, err := m.d.dir.Move(ctx, id)
	if err != nil {
		return err
	}
	if move.Target != m.d.Name || move.State != pod.MoveRunning {
		return fmt.Errorf("%w: move %s goes to host %s and is %s", pod.ErrConflict, id, move.Target, move.State)
	}
	if move.Source != m.peer {
		return fmt.Errorf("%w: move %s comes from host %s, and not from host %s", pod.ErrDenied, id, move.Source, m.peer)
	}
	m.log = m.log.With("pod", move.Pod, "move", id)
	release, err := m.d.claim(ctx, move.Pod)
	if err != nil {
		return err
	}
	m.release = release
	if m.record, err = m.d.dir.Pod(ctx, move.Pod); err != nil {
		return err
	}
	m.move = move
	m.dismiss()
	m.dismiss = m.d.guardMove(move, move.Source, m.stop)
	m.log.Info("a pod is coming", "source", move.Source)
	if err := m.at(m.stage); err != nil {
		return err
	}
	network, err := m.d.net(ctx)
	if err != nil {
		return err
	}
	m.network = network
	nsPath := m.d.netnsPath(move.Pod, move.Next.Epoch)
	if err := m.d.attachNetwork(network, nsPath, move.Next, true); err != nil {
		return err
	}
	if m.container, err = m.d.prepareContainer(ctx, m.record.Spec, move.Next); err != nil {
		return err
	}
	m.sink = filesync.NewSink(fileTrees(m.container), filesync.Limits{}, m.log)
	m.images = m.d.imagesOf(targetImages, move.Pod, move.Next.Epoch)
	reserved := new(poddv1.Reserved)
	if order.GetCarry() {
		if reserved.Unable, err = m.openPager(ctx); err != nil {
			return err
		}
	}
	if reserved.Shared, err = m.openShared(); err != nil {
		return err
	}
	m.received = checkpoint.NewImageStore(m.images, checkpoint.ImageLimits{Bytes: maxImageBytes, Files: maxImageFiles})
	if m.restore, err = m.d.prepareRestore(ctx, m.container, network, m.images, m.received, m.pager); err != nil {
		return err
	}
	return m.send(&poddv1.TargetMessage{Message: &poddv1.TargetMessage_Reserved{Reserved: reserved}})
}

// prepareRestore starts CRIU for a pod whose images are, or will be, in the
// directory images, and whose other memory the pager has, if there is one. received takes the
// images, unless it is nil.
func (d *Daemon) prepareRestore(ctx context.Context, container *namespace.Container, network *vnet.Network, images string, received *checkpoint.ImageStore, pg *pager.Pager) (*checkpoint.Restore, error) {
	work := filepath.Join(images, "work")
	if err := os.MkdirAll(work, 0o700); err != nil {
		return nil, fmt.Errorf("making a directory for images: %w", err)
	}
	nsPath := d.netnsPath(container.Name(), container.Epoch())
	policy, err := restorePolicy(container)
	if err != nil {
		return nil, err
	}
	return d.engine.PrepareRestore(ctx, checkpoint.RestoreOptions{
		ImagesDir: images, WorkDir: work, Root: container.Root(), NetNS: nsPath,
		ExternalMounts: container.ExternalMounts(), Images: received, Policy: policy, Lazy: lazy(pg),
		Hooks: checkpoint.RestoreHooks{
			JoinCgroup: container.JoinCgroup,
			Adopt: func(pid int) error {
				if err := fault.At("target:adopt", nil); err != nil {
					return err
				}
				return container.Adopt(pid)
			},
			Release: func() error {
				return errors.Join(network.FreeLoopback(nsPath), fault.At("target:resuming", nil))
			},
		},
		Log: d.log.With("pod", container.Name()),
	})
}

// letRun lets a restored pod run, and then be heard. Until it runs CRIU may die
// and take it along; then it is restored once more, from its past, and nobody may
// have got an answer from the copy that died. Should podd die before the pod is
// heard, the next one finds it blocked. An error may leave a pod that runs.
func (d *Daemon) letRun(ctx context.Context, restore *checkpoint.Restore, container *namespace.Container, network *vnet.Network) (running bool, err error) {
	if err = restore.Commit(ctx); err != nil {
		if _, running := container.PID(); !running {
			return false, err
		}
	}
	err = errors.Join(err, fault.At("target:unheard", nil))
	if err = errors.Join(err, network.Unblock(d.netnsPath(container.Name(), container.Epoch()))); err != nil {
		d.wakeReconcile() // it finds what is still blocked
	}
	return true, err
}

// finish restores, commits and lets the pod run.
func (m *targetMove) finish(ctx context.Context) error {
	m.stage = pod.StageRestore
	begin := time.Now()
	if err := m.at(m.stage); err != nil {
		return err
	}
	if err := m.restore.Verify(); err != nil {
		return err
	}
	// Nobody changes the records while the pod is frozen.
	ahead := make(chan error, 1)
	go func() { ahead <- m.d.dir.ReadAhead(ctx, m.move.ID) }()
	_, err := m.restore.Run(ctx)
	if err := errors.Join(err, <-ahead); err != nil {
		return err
	}
	// The proxy lets the packets go that it holds as soon as it sees the
	// commit, and the sockets are ready for them.
	admitted := make(chan error, 1)
	go func() { admitted <- m.network.Admit(m.d.netnsPath(m.move.Pod, m.move.Next.Epoch)) }()
	err = m.verifyMemory(ctx)
	if err := errors.Join(err, <-admitted); err != nil {
		return err
	}
	restored := time.Since(begin)
	if err := m.send(&poddv1.TargetMessage{Message: &poddv1.TargetMessage_Restored{Restored: &poddv1.Restored{RestoreNanoseconds: restored.Nanoseconds()}}}); err != nil {
		return err
	}
	m.stage = pod.StageCommit
	begin = time.Now()
	if err := m.at(m.stage); err != nil {
		return err
	}
	// The record by which a later podd finds the pod has been written, and there
	// are the images until it runs.
	m.asked = true
	if err := m.d.dir.CommitMove(ctx, m.move.ID); err != nil {
		return err
	}
	m.committed = true
	committed := time.Since(begin)
	m.stage = pod.StageRelease
	begin = time.Now()
	// There is no way back: whatever fails now is reported and lived with.
	if err := m.at("committed"); err != nil {
		m.log.Error("letting the pod run meets an error", "error", err)
	}
	m.resume()
	if err := m.at(m.stage); err != nil {
		m.log.Error("taking over the pod meets an error", "error", err)
	}
	running := time.Since(begin)
	// The source measures the freeze by these two, so they go first and
	// together; if it has gone, the directory tells it.
	messages := []*poddv1.TargetMessage{{Message: &poddv1.TargetMessage_Committed{Committed: &poddv1.Committed{CommitNanoseconds: committed.Nanoseconds()}}}}
	if !m.lost {
		messages = append(messages, &poddv1.TargetMessage{Message: &poddv1.TargetMessage_Running{Running: &poddv1.Running{ResumeNanoseconds: running.Nanoseconds()}}})
	}
	for _, message := range messages {
		if err := m.send(message); err != nil {
			m.log.Warn("the source was not told how the move ended", "error", err)
		}
	}
	m.takeOver()
	return nil
}
