package directory

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"podd/pod"
	"podd/trust"
)

// Registration keeps a host or a proxy alive in the directory.
type Registration struct {
	d         *Directory
	what      string // "host a", for logs and errors
	key       string
	aliveKey  string
	record    any
	physical  netip.Addr
	lease     clientv3.LeaseID
	cancel    context.CancelFunc
	wait      sync.WaitGroup
	closeOnce sync.Once
}

// RegisterHost writes the host's record and keeps it alive until Close, across
// losses of the lease and of the directory. If a live host of that name has
// another physical address, the error wraps pod.ErrExists.
func (d *Directory) RegisterHost(ctx context.Context, h pod.Host) (*Registration, error) {
	if err := pod.ValidateName(h.Name); err != nil {
		return nil, err
	}
	return d.register(ctx, &Registration{
		what: "host " + h.Name, key: hostPrefix + h.Name, aliveKey: hostAlive + h.Name, record: h, physical: h.Physical,
	})
}

// RegisterProxy does for the proxy what RegisterHost does for a host.
func (d *Directory) RegisterProxy(ctx context.Context, p pod.Proxy) (*Registration, error) {
	if err := pod.ValidateName(p.Name); err != nil {
		return nil, err
	}
	return d.register(ctx, &Registration{
		what: "proxy " + p.Name, key: proxyPrefix + p.Name, aliveKey: proxyAlive + p.Name, record: p, physical: p.Physical,
	})
}

func (d *Directory) register(ctx context.Context, r *Registration) (*Registration, error) {
	r.d = d
	if err := d.retry(ctx, "registering "+r.what, r.put); err != nil {
		return nil, err
	}
	// Not a child of ctx, which may be bounded to the start.
	running, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.wait.Go(func() { r.keep(running) })
	return r, nil
}

// put grants a lease and writes the record and the key that dies with it.
func (r *Registration) put(ctx context.Context) error {
	kvs, err := r.d.read(ctx, r.key, r.aliveKey)
	if err != nil {
		return err
	}
	record, alive := kvs[0], kvs[1]
	if record != nil && alive != nil {
		other, err := decode[struct{ Physical netip.Addr }](record)
		if err != nil {
			return err
		}
		if other.Physical != r.physical {
			return fmt.Errorf("%w: a live %s at %s", pod.ErrExists, r.what, other.Physical)
		}
	}
	lease, err := r.d.etcd.Grant(ctx, int64(r.d.leaseTTL/time.Second))
	if err != nil {
		return err
	}
	r.lease = lease.ID // even if the reply to the write is lost
	// A key of our own from an earlier lease is taken over, not waited for.
	return r.d.write(ctx, []clientv3.Cmp{unchanged(r.key, record), unchanged(r.aliveKey, alive)},
		put(r.key, r.record),
		clientv3.OpPut(r.aliveKey, r.physical.String(), clientv3.WithLease(lease.ID)))
}

// keep refreshes the lease, and gets a new one when it was lost.
func (r *Registration) keep(ctx context.Context) {
	for {
		responses, err := r.d.etcd.KeepAlive(ctx, r.lease)
		if err == nil {
			for range responses {
			}
		}
		if ctx.Err() != nil {
			return
		}
		r.d.log.Warn("the directory lost this registration; registering again", "registration", r.what, "error", err)
		if !r.again(ctx) {
			return
		}
		r.d.log.Info("registered again", "registration", r.what)
	}
}

// again registers anew, however long it takes; false when ctx ends first.
func (r *Registration) again(ctx context.Context) bool {
	for {
		err := r.d.retry(ctx, "registering "+r.what, r.put)
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		r.d.log.Warn("not registered", "registration", r.what, "error", err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(time.Second):
		}
	}
}

// Close ends the registration: the record stays and is no longer alive.
func (r *Registration) Close() error {
	var err error
	r.closeOnce.Do(func() {
		r.cancel()
		r.wait.Wait()
		// The lease runs out anyway, so a directory that is gone does not
		// hold up a daemon that stops.
		const patience = time.Second
		ctx, cancel := context.WithTimeout(context.Background(), min(patience, r.d.timeout))
		defer cancel()
		_, err = r.d.etcd.Revoke(ctx, r.lease)
		if errors.Is(err, rpctypes.ErrLeaseNotFound) {
			err = nil // lost just now
		}
		if err != nil {
			err = r.d.explain(context.Background(), "ending the registration of "+r.what, err)
		}
	})
	return err
}

// Abandon stops refreshing without telling the directory, as a crash would: the
// registration is alive until its lease runs out. A daemon that restarts in
// place uses it so that nobody takes it for dead meanwhile.
func (r *Registration) Abandon() {
	r.closeOnce.Do(func() {
		r.cancel()
		r.wait.Wait()
	})
}

// Hosts lists the hosts that have joined, by name; Alive tells which are up.
func (d *Directory) Hosts(ctx context.Context) ([]pod.Host, error) {
	v, err := d.viewOf(ctx, "listing hosts", hostPrefix, hostAlive)
	if err != nil {
		return nil, err
	}
	return sorted(v.Hosts), nil
}

// Proxies lists the proxies that have joined, by name.
func (d *Directory) Proxies(ctx context.Context) ([]pod.Proxy, error) {
	v, err := d.viewOf(ctx, "listing proxies", proxyPrefix, proxyAlive)
	if err != nil {
		return nil, err
	}
	return sorted(v.Proxies), nil
}

// Host reads one host. The error wraps pod.ErrNotFound when it never joined.
func (d *Directory) Host(ctx context.Context, name string) (*pod.Host, error) {
	var h *pod.Host
	err := d.retry(ctx, "reading host "+name, func(ctx context.Context) error {
		kvs, err := d.read(ctx, hostPrefix+name, hostAlive+name)
		if err != nil {
			return err
		}
		if kvs[0] == nil {
			return fmt.Errorf("host %q: %w", name, pod.ErrNotFound)
		}
		h, err = decode[pod.Host](kvs[0])
		if err != nil {
			return err
		}
		h.Alive = kvs[1] != nil
		return nil
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// RemoveHost forgets a host that will not come back and revokes its
// certificates, so that it can't come back by itself either. Moves that only it
// could have closed are closed. The error wraps pod.ErrConflict while it is alive,
// any pod or undecided move is bound to it, or a pod elsewhere lacks memory that it
// has: removing that pod admits the loss.
func (d *Directory) RemoveHost(ctx context.Context, name string) error {
	tried := false
	return d.retry(ctx, "removing host "+name, func(ctx context.Context) error {
		v, err := d.View(ctx)
		if err != nil {
			return err
		}
		h, ok := v.Hosts[name]
		switch {
		case !ok && tried:
			return nil // the attempt whose reply was lost
		case !ok:
			return fmt.Errorf("host %q: %w", name, pod.ErrNotFound)
		case h.Alive:
			return fmt.Errorf("%w: host %s is alive; stop its podd first", pod.ErrConflict, name)
		}
		for _, p := range sorted(v.Pods) {
			if p.Binding.Host == name {
				return fmt.Errorf("%w: pod %s is on host %s", pod.ErrConflict, p.Name(), name)
			}
		}
		var closing []clientv3.Op
		for _, m := range v.Moves {
			switch {
			case finished(m) || m.Source != name && m.Target != name:
			case m.Source == name && v.memoryNeeded(m):
				return fmt.Errorf("%w: %w; host %s alone has it: without that host the pod is lost, which podctl rm --force %s admits", pod.ErrConflict, &ArrivingError{m}, name, m.Pod)
			case m.Source == name && (m.State == pod.MoveCommitted || m.Undoing()):
				closing = append(closing, put(movePrefix+m.ID, closed(m, "host "+name+" was removed before it said how the move ended")))
			default:
				return fmt.Errorf("%w: move %s of pod %s has not finished on host %s", pod.ErrConflict, m.ID, m.Pod, name)
			}
		}
		conditions, changes, err := d.revocation(ctx, trust.Identity{Kind: trust.KindHost, Name: name})
		if err != nil {
			return err
		}
		tried = true
		// Nothing may have come to the host since: no pod or move written
		// after the view, no lease.
		return d.write(ctx, append(conditions,
			clientv3.Compare(clientv3.ModRevision(podPrefix).WithPrefix(), "<", v.Revision+1),
			clientv3.Compare(clientv3.ModRevision(movePrefix).WithPrefix(), "<", v.Revision+1),
			clientv3.Compare(clientv3.Version(hostAlive+name), "=", 0),
		), slices.Concat(changes, closing, []clientv3.Op{clientv3.OpDelete(hostPrefix + name)})...)
	})
}

// closed is a decided move whose source has gone for good.
func closed(m *pod.Move, why string) *pod.Move {
	c := *m
	c.EndedAt, c.MemoryPending = time.Now().UTC(), false
	if c.State == pod.MoveCommitted {
		c.State, c.Stage = pod.MoveDone, pod.StageRelease
	}
	if c.Error == "" {
		c.Error = why
	}
	return &c
}
