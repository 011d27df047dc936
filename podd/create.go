package podd

import (
	"context"
	"errors"
	"time"

	"golang.org/x/sync/errgroup"

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
	container, err := d.makeContainer(ctx, network, spec, record.Binding)
	if err != nil {
		return nil, err
	}
	// That the pod runs is written down while its main command starts.
	var recording errgroup.Group
	err = container.Start(ctx, func() {
		recording.Go(func() error {
			return d.dir.UpdatePod(ctx, spec.Name, func(p *pod.Pod) error {
				p.Phase, p.StartedAt = pod.PhaseRunning, time.Now().UTC()
				record = p
				return nil
			})
		})
	})
	if err := errors.Join(err, recording.Wait()); err != nil {
		return nil, err
	}
	d.track(spec.Name, epoch, container)
	d.log.Info("pod created", "pod", spec.Name, "virtual", record.Binding.Virtual, "public", record.Binding.Public, "label", record.Binding.Label)
	return record, nil
}

// makeContainer makes everything of a new pod but its processes, the network
// and the files at a time.
func (d *Daemon) makeContainer(ctx context.Context, network *vnet.Network, spec pod.Spec, binding pod.Binding) (*namespace.Container, error) {
	var attaching errgroup.Group
	attaching.Go(func() error {
		return d.attachNetwork(network, d.netnsPath(spec.Name, binding.Epoch), binding, false)
	})
	container, err := d.prepareContainer(ctx, spec, binding, false)
	return container, errors.Join(attaching.Wait(), err)
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
