package podd

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"podd/archive"
	"podd/checkpoint"
	"podd/directory"
	"podd/fault"
	"podd/filesync"
	"podd/namespace"
	"podd/pod"
	"podd/vnet"
)

// fileRestore makes a pod from a checkpoint file, as the target of a move makes
// one of what the source sends.
type fileRestore struct {
	d    *Daemon
	log  *slog.Logger
	file *restoredFile
	// spec is the pod's, with its name here.
	spec pod.Spec
	// newIdentity makes a copy, with an address of its own.
	newIdentity bool

	record    *pod.Pod
	network   *vnet.Network
	container *namespace.Container
	restore   *checkpoint.Restore
	images    string // directory
}

// run makes the pod. On an error nothing is left, and what the pod continues is
// as it was.
func (r *fileRestore) run(ctx context.Context) (_ *pod.Pod, err error) {
	if r.network, err = r.d.net(ctx); err != nil {
		return nil, err
	}
	release, err := r.d.claim(ctx, r.spec.Name)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := r.reserve(ctx); err != nil {
		return nil, err
	}
	// A caller that goes away before the pod runs has it undone.
	err = r.build(ctx)
	if err == nil {
		err = r.start(context.WithoutCancel(ctx))
	}
	if errors.Is(err, errUndecided) {
		return nil, err // podd stops; the images stay for the next start
	}
	if err != nil {
		r.undo()
		return nil, err
	}
	return r.record, nil
}

// reserve takes the pod's name, addresses, label and epoch.
func (r *fileRestore) reserve(ctx context.Context) error {
	m := r.file.manifest
	var err error
	if r.newIdentity {
		r.record, err = r.d.dir.CreatePod(ctx, r.spec, r.d.Name)
	} else {
		r.record, err = r.d.dir.RestorePod(ctx, directory.Restored{
			Spec: r.spec, Virtual: m.Virtual, Epoch: m.Epoch, TriedEpoch: m.TriedEpoch, CreatedAt: m.CreatedAt, Checkpoint: r.file.envelope.Header.ID,
		}, r.d.Name)
	}
	if err != nil {
		r.d.wakeReconcile() // there may be a record all the same
	}
	return err
}

// build makes everything of the pod, which is held by CRIU at the end.
func (r *fileRestore) build(ctx context.Context) error {
	binding := r.record.Binding
	if err := r.d.attachNetwork(r.network, r.d.netnsPath(r.spec.Name, binding.Epoch), binding, true); err != nil {
		return err
	}
	var err error
	if r.container, err = r.d.prepareContainer(ctx, r.spec, binding); err != nil {
		return err
	}
	r.images = r.d.imagesOf(targetImages, r.spec.Name, binding.Epoch)
	if r.restore, err = r.d.prepareRestore(ctx, r.container, r.network, r.images, nil, nil); err != nil {
		return err
	}
	if err := r.unpack(ctx); err != nil {
		return err
	}
	if err := fault.At("restore:unpacked", nil); err != nil {
		return err
	}
	if err := r.container.Mount(); err != nil {
		return err
	}
	if err := r.rename(); err != nil {
		return err
	}
	_, err = r.restore.Run(ctx)
	return err
}

// unpack reads the file once more and puts everything in its place.
func (r *fileRestore) unpack(ctx context.Context) error {
	members, err := r.d.openFile(r.file)
	if err != nil {
		return err
	}
	defer members.Close()
	for {
		member, content, err := members.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := r.unpackMember(ctx, member, bufio.NewReaderSize(content, 256<<10)); err != nil {
			return fmt.Errorf("member %s of the file: %w", member.Name, err)
		}
	}
}

func (r *fileRestore) unpackMember(ctx context.Context, member archive.Member, content *bufio.Reader) error {
	switch member.Name {
	case memberFiles:
		sink := filesync.NewSink(fileTrees(r.container), filesync.Limits{}, r.log)
		for {
			if _, err := content.Peek(1); err == io.EOF {
				return nil
			} else if err != nil {
				return err
			}
			if _, err := sink.Apply(ctx, content); err != nil {
				return err
			}
		}
	case memberMemory:
		const images = 1 << 16 // address spaces and shared memory segments
		_, free, err := checkpoint.ReceivePages(ctx, content, r.images, checkpoint.PageLimits{Bytes: member.Size, Images: images}, nil, nil)
		return errors.Join(err, free(), atEnd(content, err))
	case memberImages:
		_, err := checkpoint.ReceiveImages(ctx, content, r.images, checkpoint.ImageLimits{Bytes: min(member.Size, maxImageBytes), Files: maxImageFiles})
		return errors.Join(err, atEnd(content, err))
	}
	return nil
}

// atEnd says what is wrong if something follows, unless something was wrong
// before.
func atEnd(content *bufio.Reader, before error) error {
	if before != nil {
		return nil
	}
	_, err := content.Peek(1)
	switch {
	case err == nil:
		return fmt.Errorf("%w: something follows its end", archive.ErrFormat)
	case err != io.EOF:
		return err
	}
	return nil
}

// rename gives a pod the name and address that it has here, inside as well.
func (r *fileRestore) rename() error {
	old := r.file.manifest
	if r.spec.Name == old.Spec.Name && r.record.Binding.Virtual == old.Virtual {
		return nil
	}
	if err := r.container.Rename(old.Virtual); err != nil {
		return err
	}
	return checkpoint.Rename(r.images, checkpoint.Renaming{Hostname: r.spec.Name, From: old.Virtual, To: r.record.Binding.Virtual})
}

// start records that the pod runs, which is the point of no return, and lets it.
func (r *fileRestore) start(ctx context.Context) error {
	for {
		record, err := r.d.dir.StartRestored(ctx, r.spec.Name, r.record.Binding.Epoch)
		if err == nil {
			r.record = record
			break
		}
		if !errors.Is(err, pod.ErrUnavailable) {
			return err
		}
		r.log.Error("the directory can't be told that the pod is restored; it waits", "error", err)
		select {
		case <-r.d.ctx.Done():
			return fmt.Errorf("%w: %w", errUndecided, err)
		case <-time.After(directoryRetry):
		}
	}
	if err := fault.At("restore:committed", nil); err != nil {
		r.log.Error("letting the pod run meets an error", "error", err)
	}
	running, err := r.d.letRun(ctx, r.restore, r.container, r.network)
	if err != nil {
		r.log.Error("letting the pod run failed", "running", running, "error", err)
	}
	if !running {
		// Its images are whole: the reconcile loop restores it from them.
		r.restore.Close()
		r.d.wakeReconcile()
		return nil
	}
	r.d.track(r.spec.Name, r.record.Binding.Epoch, r.container)
	r.log.Info("the pod was restored from a checkpoint file", "epoch", r.record.Binding.Epoch)
	r.restore.Close()
	if err := r.d.removeImages(context.WithoutCancel(r.d.ctx), r.images); err != nil {
		r.log.Error("removing images failed", "error", err)
	}
	// What it continues may have files here that nobody needs any more.
	r.d.wakeReconcile()
	return nil
}

// undo removes every trace.
func (r *fileRestore) undo() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.d.ctx), cleanupTimeout)
	defer cancel()
	var errs []error
	if r.restore != nil {
		errs = append(errs, r.restore.Abort())
	}
	if r.images != "" {
		errs = append(errs, os.RemoveAll(r.images))
	}
	errs = append(errs, r.d.undoCreate(ctx, r.spec.Name, r.record.Binding.Epoch))
	if err := errors.Join(errs...); err != nil {
		r.log.Error("undoing a restore failed; it is tried again", "error", err)
		r.d.wakeReconcile()
	}
}

// undoCreate removes what there is of a pod that never came to run, here and
// then in the directory, where it becomes what it was before.
func (d *Daemon) undoCreate(ctx context.Context, name string, epoch pod.Epoch) error {
	if err := d.removeIncarnation(ctx, name, epoch); err != nil {
		return err
	}
	return d.dir.UndoCreate(ctx, name, epoch)
}
