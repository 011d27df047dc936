package directory

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"podd/pod"
)

// Restored is what a checkpoint file says about the pod that it brings back.
type Restored struct {
	Spec pod.Spec
	// Virtual is the pod's address.
	Virtual netip.Addr
	// Epoch is that of the incarnation in the file, TriedEpoch the highest one
	// that was ever given to the pod when the file was written.
	Epoch, TriedEpoch pod.Epoch
	// CreatedAt tells the pod from others of its name.
	CreatedAt time.Time
	// Checkpoint is the file's ID.
	Checkpoint string
}

// RestorePod takes what a pod from a checkpoint file needs to be itself again:
// its name and addresses, and a new label and epoch. The record is in
// PhaseCreating, until StartRestored or UndoCreate. The error wraps
// pod.ErrConflict where something newer of the pod exists or somebody else has
// its address, and what CreatePod's does.
func (d *Directory) RestorePod(ctx context.Context, r Restored, host string) (*pod.Pod, error) {
	if err := r.Spec.Validate(); err != nil {
		return nil, err
	}
	unlock, err := d.lockAllocator(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()
	cluster, err := d.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	if !cluster.Virtual.Contains(r.Virtual) || !cluster.usable(offsetOf(cluster.Virtual, r.Virtual)) {
		return nil, fmt.Errorf("%w: the pod's address %s is none of this cluster's %s", pod.ErrInvalid, r.Virtual, cluster.Virtual)
	}
	offset := offsetOf(cluster.Virtual, r.Virtual)
	var tried attempts
	var mine *pod.Pod
	key, addressKey := podPrefix+r.Spec.Name, fmt.Sprintf(addressKeyForm, offset)
	err = d.retry(ctx, "restoring pod "+r.Spec.Name, func(ctx context.Context) error {
		kvs, err := d.read(ctx, key, addressKey, allocatorKey, hostPrefix+host, hostAlive+host)
		if err != nil {
			return err
		}
		if mine = tried.stored(kvs[0]); mine != nil {
			return nil
		}
		switch {
		case kvs[3] == nil:
			return fmt.Errorf("host %q: %w", host, pod.ErrNotFound)
		case kvs[4] == nil:
			return fmt.Errorf("%w: host %s is down", pod.ErrUnavailable, host)
		}
		ended, err := r.ended(kvs[0])
		if err != nil {
			return err
		}
		if owner := kvs[1]; owner != nil && string(owner.Value) != r.Spec.Name {
			return fmt.Errorf("%w: pod %s has the address %s now", pod.ErrConflict, owner.Value, r.Virtual)
		}
		h, err := decode[pod.Host](kvs[3])
		if err != nil {
			return err
		}
		a, err := decodeAllocator(kvs[2])
		if err != nil {
			return err
		}
		label, err := d.label(ctx, a)
		if err != nil {
			return err
		}
		public, virtual := cluster.addresses(offset)
		mine = r.record(ended)
		mine.Binding = pod.Binding{
			Virtual: virtual, Public: public, Host: host, Physical: h.Physical, Label: label, Epoch: mine.TriedEpoch,
		}
		tried = append(tried, mine)
		return d.write(ctx,
			[]clientv3.Cmp{unchanged(key, kvs[0]), unchanged(addressKey, kvs[1]), unchanged(allocatorKey, kvs[2]), exists(hostAlive + host)},
			put(key, mine), put(allocatorKey, a), clientv3.OpPut(addressKey, r.Spec.Name))
	})
	if err != nil {
		return nil, err
	}
	return mine, nil
}

// ended is the record of the pod's last incarnation, if the file may replace
// it; nil if there is none.
func (r *Restored) ended(kv *mvccpb.KeyValue) (*pod.Pod, error) {
	if kv == nil {
		return nil, nil
	}
	p, err := decode[pod.Pod](kv)
	if err != nil {
		return nil, err
	}
	name, epoch := p.Name(), p.Binding.Epoch
	switch {
	case !p.CreatedAt.Equal(r.CreatedAt):
		return nil, fmt.Errorf("another pod %q %w", name, pod.ErrExists)
	case p.Phase != pod.PhaseStopped && p.Phase != pod.PhaseFailed:
		return nil, fmt.Errorf("%w: pod %s is %s on host %s with epoch %d; the file is of epoch %d", pod.ErrConflict, name, p.Phase, p.Binding.Host, epoch, r.Epoch)
	case epoch > r.Epoch:
		return nil, fmt.Errorf("%w: the file is an old one: it is of epoch %d, and pod %s had reached epoch %d when it ended on host %s", pod.ErrConflict, r.Epoch, name, epoch, p.Binding.Host)
	case epoch == r.Epoch && p.Phase == pod.PhaseStopped && p.Checkpoint != r.Checkpoint:
		return nil, fmt.Errorf("%w: pod %s went on after the file was written, and stopped later on host %s; podctl rm %s gives that up", pod.ErrConflict, name, p.Binding.Host, name)
	}
	return p, nil
}

// record is the new record of the pod but for its binding.
func (r *Restored) record(ended *pod.Pod) *pod.Pod {
	p := &pod.Pod{Spec: r.Spec, Phase: pod.PhaseCreating, CreatedAt: r.CreatedAt}
	p.TriedEpoch = max(r.Epoch, r.TriedEpoch)
	if ended != nil {
		p.Continues = &pod.Ended{Binding: ended.Binding, Phase: ended.Phase}
		p.Reason, p.Checkpoint, p.ExitCode = ended.Reason, ended.Checkpoint, ended.ExitCode
		p.StartedAt, p.StoppedAt = ended.StartedAt, ended.StoppedAt
		p.TriedEpoch = max(p.TriedEpoch, ended.TriedEpoch, ended.Binding.Epoch)
	}
	p.TriedEpoch++
	return p
}

// StartRestored makes a pod that is being restored a running one: from here on
// the incarnation of that epoch is the pod, whatever becomes of what it
// continues. It returns the record. The error wraps pod.ErrConflict if the
// restore was undone.
func (d *Directory) StartRestored(ctx context.Context, name string, epoch pod.Epoch) (*pod.Pod, error) {
	var record *pod.Pod
	err := d.UpdatePod(ctx, name, func(p *pod.Pod) error {
		record = p
		switch {
		case p.Binding.Epoch != epoch || p.Phase != pod.PhaseCreating && p.Phase != pod.PhaseRunning:
			return fmt.Errorf("%w: the restore of pod %s was given up", pod.ErrConflict, name)
		case p.Phase == pod.PhaseRunning:
			return nil // the attempt whose reply was lost
		}
		p.Phase, p.StartedAt, p.StoppedAt = pod.PhaseRunning, time.Now().UTC(), time.Time{}
		p.Continues, p.Reason, p.Checkpoint, p.ExitCode = nil, "", "", 0
		return nil
	})
	if err != nil {
		return nil, err
	}
	return record, nil
}

// UndoCreate takes back what CreatePod or RestorePod did, if the pod is still
// of that epoch and in PhaseCreating: the record goes, or becomes again what it
// was before. Asking again changes nothing.
func (d *Directory) UndoCreate(ctx context.Context, name string, epoch pod.Epoch) error {
	key := podPrefix + name
	return d.retry(ctx, "undoing the creation of pod "+name, func(ctx context.Context) error {
		kvs, err := d.read(ctx, key, clusterKey)
		if err != nil || kvs[0] == nil {
			return err
		}
		p, err := decode[pod.Pod](kvs[0])
		if err != nil {
			return err
		}
		if p.Phase != pod.PhaseCreating || p.Binding.Epoch != epoch {
			return nil
		}
		if ended := p.Continues; ended != nil {
			p.Binding, p.Phase, p.Continues = ended.Binding, ended.Phase, nil
			return d.write(ctx, one(unchanged(key, kvs[0])), put(key, p))
		}
		if kvs[1] == nil {
			return errNoCluster
		}
		cluster, err := decode[Cluster](kvs[1])
		if err != nil {
			return err
		}
		return d.write(ctx, one(unchanged(key, kvs[0])),
			clientv3.OpDelete(key),
			clientv3.OpDelete(fmt.Sprintf(addressKeyForm, offsetOf(cluster.Virtual, p.Binding.Virtual))))
	})
}
