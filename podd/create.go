package podd

import (
	"context"
	"errors"
	"time"

	"podd/namespace"
	"podd/pod"
	"podd/vnet"
)

// create makes a pod and starts its main command. On an error nothing is left.
func (d *Daemon) create(ctx context.Context, spec pod.Spec) (_ *pod.Pod, err error) {
	if err := spec.Validate(); err != nil {
		return nil, err
	}
	network, err := d.net(ctx)
	if err != nil {
		return nil, err
	}
	release, err := d.claim(ctx, spec.Name)
	if err != nil {
		return nil, err
	}
	defer release()
	record, err := d.dir.CreatePod(ctx, spec, d.Name)
	if err != nil {
		if errors.Is(err, pod.ErrUnavailable) {
			d.wakeReconcile() // there may be a record all the same
		}
		return nil, err
	}
	// A caller that goes away must not leave half a pod.
	ctx = context.WithoutCancel(ctx)
	epoch := record.Binding.Epoch
	defer func() {
		if err != nil {
			if undo := d.remove(ctx, spec.Name, epoch); undo != nil {
				d.wakeReconcile()
				d.log.Error("undoing the creation of a pod failed", "pod", spec.Name, "error", undo)
			}
		}
	}()
	if err := d.attachNetwork(network, d.netnsPath(spec.Name, epoch), record.Binding, false); err != nil {
		return nil, err
	}
	container, err := d.prepareContainer(ctx, spec, record.Binding, false)
	if err != nil {
		return nil, err
	}
	if err := container.Start(ctx); err != nil {
		return nil, err
	}
	err = d.dir.UpdatePod(ctx, spec.Name, func(p *pod.Pod) error {
		p.Phase, p.StartedAt = pod.PhaseRunning, time.Now().UTC()
		record = p
		return nil
	})
	if err != nil {
		return nil, err
	}
	d.track(spec.Name, epoch, container)
	d.log.Info("pod created", "pod", spec.Name, "virtual", record.Binding.Virtual, "public", record.Binding.Public, "label", record.Binding.Label)
	return record, nil
}

// attachNetwork makes a pod's network namespace with its NIC.
func (d *Daemon) attachNetwork(network *vnet.Network, path string, binding pod.Binding, blocked bool) error {
	if err := network.CreateNamespace(path); err != nil {
		return err
	}
	return network.Attach(path, binding, vnet.AttachOptions{Blocked: blocked})
}

// prepareContainer makes everything a pod's processes need, for a new pod or
// for one that comes from another host.
func (d *Daemon) prepareContainer(ctx context.Context, spec pod.Spec, binding pod.Binding, restore bool) (*namespace.Container, error) {
	cluster, err := d.dir.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	return d.runtime.Prepare(ctx, namespace.Config{
		Spec: spec, Epoch: binding.Epoch, Label: binding.Label, NetNS: d.netnsPath(spec.Name, binding.Epoch),
		Address: binding.Virtual, Nameserver: pod.Gateway, Search: cluster.Zone, Restore: restore,
	})
}
