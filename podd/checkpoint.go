package podd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"filippo.io/age"
	"golang.org/x/sys/unix"

	poddv1 "podd/api/podd/v1"
	"podd/archive"
	"podd/checkpoint"
	"podd/filesync"
	"podd/pod"
	"podd/vnet"
)

// A pod is written into a checkpoint file like this. Its files are copied to a
// spool while it runs, then it is frozen and dumped, as for a move; memory goes
// to the tmpfs of images. A pod that is left running goes on at that point, and
// the file is made from the spool. One that is not stays frozen, held by CRIU,
// until whoever asked has said that the file is stored safely: only then is it
// recorded as stopped and ended, in silence. If anything fails before, or nobody
// says anything, it goes on as if nothing had happened, with its connections. So
// at any time there is a pod or a whole file of it. That it stands still while
// the file travels costs nobody anything: it was to be stopped anyway.

const (
	// sendStall is how long a frozen pod waits for podctl to take more of the
	// file, confirmTimeout how long for it to be stored.
	sendStall      = time.Minute
	confirmTimeout = time.Minute
	// sendChunk is how many bytes of a file go into one message, sendQueue how
	// many messages may wait.
	sendChunk = 256 << 10
	sendQueue = 16
	// maxRecipients bounds for whom one file is encrypted.
	maxRecipients = 32
)

// The stages of a checkpoint besides those it has in common with a move.
const (
	stageSeal    pod.Stage = "seal"
	stageConfirm pod.Stage = "confirm"
)

// podCheckpoint is one pod on its way into a file.
type podCheckpoint struct {
	d     *Daemon
	log   *slog.Logger
	id    string
	order *poddv1.CheckpointPodRequest
	out   chan<- *poddv1.CheckpointPodResponse
	clock *stageClock

	recipients []string
	keys       []age.Recipient

	pod       *localPod
	record    *pod.Pod
	mapped    []*poddv1.MappedFile
	createdAt time.Time

	// spool is a directory on disk, images one on the tmpfs.
	spool, images string
	network       *vnet.Network
	files         *filesync.Source
	dump          *checkpoint.Dump
	// letGo makes the pod its own again: it goes on unless it was ended.
	letGo func()
}

// CheckpointPod passes the file on as it is made. The work is the daemon's, so
// that a caller who takes nothing can't keep a pod from going on.
func (s *podService) CheckpointPod(ctx context.Context, r *connect.Request[poddv1.CheckpointPodRequest], stream *connect.ServerStream[poddv1.CheckpointPodResponse]) error {
	if err := s.d.permitInside(ctx, r.Msg.GetPod()); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.d.ctx, func() {
		cancel(fmt.Errorf("%w: podd on host %s is stopping", pod.ErrUnavailable, s.d.Name))
	})()
	out := make(chan *poddv1.CheckpointPodResponse, sendQueue)
	var err error
	s.d.tasks.Go(func() {
		defer close(out)
		err = s.d.checkpointPod(ctx, r.Msg, out)
	})
	var sendErr error
	for message := range out {
		if sendErr != nil {
			continue
		}
		if sendErr = stream.Send(message); sendErr != nil {
			cancel(fmt.Errorf("sending the checkpoint file: %w", sendErr))
		}
	}
	return errors.Join(err, sendErr)
}

// checkpointPod writes a pod into a file that it sends to out.
func (d *Daemon) checkpointPod(ctx context.Context, order *poddv1.CheckpointPodRequest, out chan<- *poddv1.CheckpointPodResponse) (err error) {
	c := &podCheckpoint{d: d, order: order, out: out, id: strings.ToLower(rand.Text()[:16]), letGo: func() {}}
	c.log = d.log.With("pod", order.GetPod(), "checkpoint", c.id)
	c.clock = newStageClock(c.log, c.report)
	watching, stopWatching := context.WithCancel(ctx)
	defer stopWatching()
	d.tasks.Go(func() { c.clock.watch(watching) })
	defer func() {
		c.letGo()
		c.removeSpool()
		if err != nil {
			err = fmt.Errorf("%s: %w", c.clock.stage(), err)
			c.log.Warn("writing a checkpoint file fails", "error", err)
		}
	}()
	if err := c.preflight(ctx); err != nil {
		return err
	}
	if err := c.take(ctx); err != nil {
		return err
	}
	if err := c.freeze(ctx); err != nil {
		return err
	}
	if order.GetLeaveRunning() {
		if err := c.dump.Abort(); err != nil {
			return err
		}
		c.letGo()
	}
	sources, err := c.measure()
	if err != nil {
		return err
	}
	if err := c.write(ctx, sources); err != nil {
		return err
	}
	if order.GetLeaveRunning() {
		c.log.Info("checkpoint file sent; the pod was left running")
		return nil
	}
	return c.finish(ctx)
}

// report passes progress on if there is room: nobody waits for it.
func (c *podCheckpoint) report(p progress) {
	select {
	case c.out <- &poddv1.CheckpointPodResponse{Id: c.id, Stage: string(p.stage), Bytes: p.bytes, TotalBytes: p.total}:
	default:
	}
}

// preflight finds out whether the pod can be written, and for whom.
func (c *podCheckpoint) preflight(ctx context.Context) error {
	c.clock.begin(pod.StagePreflight)
	d := c.d
	if err := c.chooseRecipients(); err != nil {
		return err
	}
	record, err := d.dir.Pod(ctx, c.order.GetPod())
	if err != nil {
		return err
	}
	if err := checkpointable(record); err != nil {
		return err
	}
	if d.engine == nil {
		return fmt.Errorf("%w: host %s: %w", pod.ErrBlocked, d.Name, d.engineErr)
	}
	p, err := d.localPod(record.Name())
	if err != nil {
		return err
	}
	if err := p.awaitMemory(ctx); err != nil {
		return err
	}
	check := &moveCheck{pod: record, local: p}
	if err := d.checkSource(ctx, p, check); err != nil {
		return err
	}
	if err := c.checkSpace(check); err != nil {
		return err
	}
	if len(check.blockers) > 0 {
		return &blockedError{pod: record.Name(), action: "written into a file", blockers: check.blockers}
	}
	if c.mapped, err = d.mappedLowerFiles(p); err != nil {
		return err
	}
	c.pod, c.record = p, record
	return nil
}

// checkpointable says why a pod can't be written into a file, if it can't.
func checkpointable(record *pod.Pod) error {
	switch {
	case record.Move != "":
		return fmt.Errorf("pod %s: %w: move %s of it is under way", record.Name(), pod.ErrConflict, record.Move)
	case record.Phase != pod.PhaseRunning:
		return fmt.Errorf("pod %s: %w: it is %s; only a running pod can be written into a file", record.Name(), pod.ErrPhase, record.Phase)
	}
	return nil
}

// chooseRecipients decides who can read the file.
func (c *podCheckpoint) chooseRecipients() error {
	c.recipients = c.order.GetRecipients()
	if len(c.recipients) > maxRecipients {
		return fmt.Errorf("%w: %d recipients, at most %d are possible", pod.ErrInvalid, len(c.recipients), maxRecipients)
	}
	if !c.order.GetOnlyRecipients() {
		own := c.d.cluster.Store.Recipient()
		if own == "" {
			return fmt.Errorf("%w: host %s does not know the cluster's key for files", pod.ErrUnavailable, c.d.Name)
		}
		c.recipients = append([]string{own}, c.recipients...)
	}
	if len(c.recipients) == 0 {
		return fmt.Errorf("%w: nobody could read the file: name a recipient", pod.ErrInvalid)
	}
	var err error
	if c.keys, err = archive.Recipients(c.recipients...); err != nil {
		return fmt.Errorf("%w: %w", pod.ErrInvalid, err)
	}
	return nil
}

// checkSpace compares what will be spooled with what there is.
func (c *podCheckpoint) checkSpace(check *moveCheck) error {
	block := func(problem, remedy string) {
		check.blockers = append(check.blockers, pod.Blocker{Descriptor: -1, Problem: "host " + c.d.Name + ": " + problem, Remedy: remedy})
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(c.d.StateDir, &fs); err != nil {
		return fmt.Errorf("looking at the space in %s: %w", c.d.StateDir, err)
	}
	if free := int64(fs.Bavail) * fs.Bsize; check.fileBytes+spaceReserve > free {
		block(fmt.Sprintf("no space: the pod's files take %d MiB, and %s has %d MiB free", check.fileBytes>>20, c.d.StateDir, free>>20), "free some space")
	}
	free, err := availableMemory()
	if err != nil {
		return err
	}
	if check.memoryBytes+spaceReserve > free {
		block(fmt.Sprintf("not enough memory: the pod's %d MiB are there twice until the file is written, and %d MiB are available", check.memoryBytes>>20, free>>20), "move other pods away")
	}
	return nil
}

// take makes the pod this checkpoint's: moves, stops and other checkpoints wait
// until letGo.
func (c *podCheckpoint) take(ctx context.Context) error {
	release, err := c.d.claim(ctx, c.pod.name)
	if err != nil {
		return err
	}
	c.pod.mu.Lock()
	endMove := c.pod.beginMove()
	c.letGo = sync.OnceFunc(func() {
		if c.dump != nil {
			if err := c.dump.Abort(); err != nil {
				c.log.Error("resuming the pod failed", "error", err)
				c.d.wakeReconcile()
			}
		}
		endMove()
		c.pod.mu.Unlock()
		release()
	})
	if c.pod.over() {
		return fmt.Errorf("pod %s: %w: it has just ended or moved", c.pod.name, pod.ErrConflict)
	}
	// Something may have been done to it since preflight.
	if c.record, err = c.d.dir.Pod(ctx, c.pod.name); err != nil {
		return err
	}
	if err := checkpointable(c.record); err != nil {
		return err
	}
	if superseded(c.d.Name, c.record, c.pod) {
		return fmt.Errorf("pod %s: %w: it is on host %s now", c.pod.name, pod.ErrConflict, c.record.Binding.Host)
	}
	if c.network, err = c.d.net(ctx); err != nil {
		return err
	}
	c.spool = filepath.Join(c.d.spoolDir(), "checkpoint-"+c.id)
	c.images = filepath.Join(c.d.imagesDir(), "checkpoint-"+c.id)
	if err := os.MkdirAll(c.spool, 0o700); err != nil {
		return fmt.Errorf("making a directory for the checkpoint: %w", err)
	}
	return nil
}

// spoolDir holds files on their way to or from checkpoint files.
func (d *Daemon) spoolDir() string { return filepath.Join(d.StateDir, "spool") }

func (c *podCheckpoint) removeSpool() {
	for _, dir := range []string{c.spool, c.images} {
		if dir == "" {
			continue
		}
		if err := os.RemoveAll(dir); err != nil {
			c.log.Error("removing what a checkpoint has spooled failed", "error", err)
		}
	}
}

// removeSpools removes what checkpoints and restores before this start have left.
func (d *Daemon) removeSpools() error {
	images, err := filepath.Glob(filepath.Join(d.imagesDir(), "checkpoint-*"))
	if err != nil {
		return err
	}
	for _, path := range append(images, d.spoolDir()) {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("removing old checkpoints: %w", err)
		}
	}
	return os.MkdirAll(d.spoolDir(), 0o700)
}
