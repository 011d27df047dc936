package podd

import (
	"context"
	"errors"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"podd/directory"
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
	creating, end := context.WithCancel(context.WithoutCancel(ctx))
	cluster, wait := d.beside(creating)
	defer wait()
	defer end()
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
	container, err := d.makeContainer(ctx, network, spec, record.Binding, cluster)
	if err != nil {
		return nil, err
	}
	// That the pod runs is written down while its main command starts.
	var recording errgroup.Group
	err = container.Start(ctx, func() {
		end() // it is in its cgroups
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

// beside does what a creation can do while the pod's record is made: it prepares
// the kernel for putting a process into a cgroup, until ctx ends, and reads what
// the cluster is. wait returns when nothing of it goes on.
func (d *Daemon) beside(ctx context.Context) (cluster func() (*directory.Cluster, error), wait func()) {
	var doing sync.WaitGroup
	cluster = sync.OnceValues(func() (*directory.Cluster, error) { return d.dir.Cluster(ctx) })
	doing.Go(func() { _, _ = cluster() }) // who calls it next is told
	doing.Go(func() {
		if err := namespace.ReadyCgroups(ctx); err != nil {
			d.log.Debug("a pod may start some milliseconds later", "error", err)
		}
	})
	return cluster, doing.Wait
}

// makeContainer makes everything of a new pod but its processes, the network
// and the files at a time.
func (d *Daemon) makeContainer(ctx context.Context, network *vnet.Network, spec pod.Spec, binding pod.Binding, cluster func() (*directory.Cluster, error)) (*namespace.Container, error) {
	var attaching errgroup.Group
	attaching.Go(func() error {
		return d.attachNetwork(network, d.netnsPath(spec.Name, binding.Epoch), binding, false)
	})
	known, err := cluster()
	if err != nil {
		return nil, errors.Join(attaching.Wait(), err)
	}
	container, err := d.runtime.Prepare(ctx, d.containerConfig(spec, binding, known))
	return container, errors.Join(attaching.Wait(), err)
}

// attachNetwork makes a pod's network namespace with its NIC.
func (d *Daemon) attachNetwork(network *vnet.Network, path string, binding pod.Binding, blocked bool) error {
	if err := network.CreateNamespace(path); err != nil {
		return err
	}
	return network.Attach(path, binding, vnet.AttachOptions{Blocked: blocked})
}

// prepareContainer makes everything the processes of a pod need that comes from
// another host or a file.
func (d *Daemon) prepareContainer(ctx context.Context, spec pod.Spec, binding pod.Binding) (*namespace.Container, error) {
	cluster, err := d.dir.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	config := d.containerConfig(spec, binding, cluster)
	config.Restore = true
	return d.runtime.Prepare(ctx, config)
}

func (d *Daemon) containerConfig(spec pod.Spec, binding pod.Binding, cluster *directory.Cluster) namespace.Config {
	return namespace.Config{
		Spec: spec, Epoch: binding.Epoch, Label: binding.Label, NetNS: d.netnsPath(spec.Name, binding.Epoch),
		Address: binding.Virtual, Nameserver: pod.Gateway, Search: cluster.Zone,
	}
}
