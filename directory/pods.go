package directory

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"podd/pod"
)

func one(c clientv3.Cmp) []clientv3.Cmp { return []clientv3.Cmp{c} }

// CreatePod takes the name, a pair of addresses and a label for a new pod on
// host, in PhaseCreating and at epoch 1. The error wraps pod.ErrInvalid,
// pod.ErrExists, pod.ErrExhausted (no address left), pod.ErrNotFound (no such
// host) or pod.ErrUnavailable (the host is down).
func (d *Directory) CreatePod(ctx context.Context, spec pod.Spec, host string) (*pod.Pod, error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	unlock, err := d.lockAllocator(ctx)
	if err != nil {
		return nil, err
	}
	defer unlock()

	var tried attempts
	var mine *pod.Pod
	key := podPrefix + spec.Name
	err = d.retry(ctx, "creating pod "+spec.Name, func(ctx context.Context) error {
		kvs, err := d.read(ctx, key, clusterKey, allocatorKey, hostPrefix+host, hostAlive+host)
		if err != nil {
			return err
		}
		if mine = tried.stored(kvs[0]); mine != nil {
			return nil
		}
		switch {
		case kvs[0] != nil:
			return fmt.Errorf("pod %q %w", spec.Name, pod.ErrExists)
		case kvs[1] == nil:
			return errNoCluster
		case kvs[3] == nil:
			return fmt.Errorf("host %q: %w", host, pod.ErrNotFound)
		case kvs[4] == nil:
			return fmt.Errorf("%w: host %s is down", pod.ErrUnavailable, host)
		}
		cluster, err := decode[Cluster](kvs[1])
		if err != nil {
			return err
		}
		a, err := decodeAllocator(kvs[2])
		if err != nil {
			return err
		}
		h, err := decode[pod.Host](kvs[3])
		if err != nil {
			return err
		}
		offset, err := d.offset(ctx, cluster, a)
		if err != nil {
			return err
		}
		label, err := d.label(ctx, a)
		if err != nil {
			return err
		}
		public, virtual := cluster.addresses(offset)
		mine = &pod.Pod{
			Spec: spec,
			Binding: pod.Binding{
				Virtual: virtual, Public: public,
				Host: host, Physical: h.Physical,
				Label: label, Epoch: 1,
			},
			Phase:     pod.PhaseCreating,
			CreatedAt: time.Now().UTC(),
		}
		tried = append(tried, mine)
		return d.write(ctx,
			[]clientv3.Cmp{unchanged(key, nil), unchanged(allocatorKey, kvs[2]), exists(hostAlive + host)},
			put(key, mine),
			put(allocatorKey, a),
			clientv3.OpPut(fmt.Sprintf(addressKeyForm, offset), spec.Name))
	})
	if err != nil {
		return nil, err
	}
	return mine, nil
}

// Pod reads one pod. The error wraps pod.ErrNotFound.
func (d *Directory) Pod(ctx context.Context, name string) (*pod.Pod, error) {
	resp, err := d.get(ctx, "reading pod "+name, podPrefix+name)
	if err != nil {
		return nil, err
	}
	if len(resp.Kvs) == 0 {
		return nil, fmt.Errorf("pod %q: %w", name, pod.ErrNotFound)
	}
	return decode[pod.Pod](resp.Kvs[0])
}

// Pods lists all pods by name.
func (d *Directory) Pods(ctx context.Context) ([]*pod.Pod, error) {
	resp, err := d.get(ctx, "listing pods", podPrefix, clientv3.WithPrefix())
	if err != nil {
		return nil, err
	}
	pods := make([]*pod.Pod, 0, len(resp.Kvs))
	for _, kv := range resp.Kvs {
		p, err := decode[pod.Pod](kv)
		if err != nil {
			return nil, fmt.Errorf("listing pods: %w", err)
		}
		pods = append(pods, p)
	}
	return pods, nil
}

// UpdatePod applies change to the pod's record and stores it, again with a
// fresh record whenever somebody else was first; change may run several times.
// An error from change is returned as it is and nothing is stored. The name,
// the binding and the move are not change's to alter.
func (d *Directory) UpdatePod(ctx context.Context, name string, change func(*pod.Pod) error) error {
	key := podPrefix + name
	return d.retry(ctx, "updating pod "+name, func(ctx context.Context) error {
		kvs, err := d.read(ctx, key)
		if err != nil {
			return err
		}
		if kvs[0] == nil {
			return fmt.Errorf("pod %q: %w", name, pod.ErrNotFound)
		}
		p, err := decode[pod.Pod](kvs[0])
		if err != nil {
			return err
		}
		before, binding, move := string(encode(p)), p.Binding, p.Move
		if err := change(p); err != nil {
			return err
		}
		if p.Name() != name || p.Binding != binding || p.Move != move {
			return fmt.Errorf("%w: the name, binding and move of a pod change only by moving it", pod.ErrInvalid)
		}
		if string(encode(p)) == before {
			return nil
		}
		return d.write(ctx, one(unchanged(key, kvs[0])), put(key, p))
	})
}

// DeletePod removes the record and frees the addresses; the label is not used
// again. The error wraps pod.ErrNotFound, or pod.ErrConflict during a move.
func (d *Directory) DeletePod(ctx context.Context, name string) error {
	key := podPrefix + name
	var tried *pod.Pod
	return d.retry(ctx, "deleting pod "+name, func(ctx context.Context) error {
		kvs, err := d.read(ctx, key, clusterKey)
		if err != nil {
			return err
		}
		if kvs[0] == nil && tried != nil {
			return nil // the attempt whose reply was lost, or somebody else's: gone either way
		}
		if kvs[0] == nil {
			return fmt.Errorf("pod %q: %w", name, pod.ErrNotFound)
		}
		p, err := decode[pod.Pod](kvs[0])
		if err != nil {
			return err
		}
		if tried != nil && !tried.CreatedAt.Equal(p.CreatedAt) {
			return nil // ours is gone, this is another of the same name
		}
		if p.Move != "" {
			return fmt.Errorf("%w: pod %s is being moved (move %s)", pod.ErrConflict, name, p.Move)
		}
		if kvs[1] == nil {
			return errNoCluster
		}
		cluster, err := decode[Cluster](kvs[1])
		if err != nil {
			return err
		}
		tried = p
		return d.write(ctx, one(unchanged(key, kvs[0])),
			clientv3.OpDelete(key),
			clientv3.OpDelete(fmt.Sprintf(addressKeyForm, offsetOf(cluster.Virtual, p.Binding.Virtual))))
	})
}
