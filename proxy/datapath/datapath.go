// Package datapath is the packet side of the session proxy: a labelled device
// per pod, a constant number of iptables rules that pair public with virtual
// addresses, and the hold and the switch of a move. It brings the kernel to a
// desired State and keeps nothing of its own, so that a proxy that is
// restarted adopts what is there and connections live on.
//
// Every pod has one VXLAN device per label, a permanent neighbour on it and a
// /32 route through it. Which label a pod's packets have to carry is decided
// by that route alone: the reverse-path filter drops a source address that
// comes in through any other device, and so a move is one replaced route. An
// address without a pod is unreachable.
//
// A hold queues a pod's packets in the kernel's own neighbour queue, which is
// below routing: the route is untouched and what the pod still sends passes.
// A release gives the old device a forwarding entry that sends with the new
// label, replaces the route and lets the queues go, oldest packets first.
package datapath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"podd/pod"
	"podd/vnet/vxlan"
)

// Config is what does not change while the proxy runs.
type Config struct {
	// Physical is the proxy's own outer address, IPv4.
	Physical netip.Addr
	// PublicPrefix is paired 1:1 with VirtualPrefix; both IPv4, of one length.
	PublicPrefix, VirtualPrefix netip.Prefix
	// Port is the UDP port of VXLAN; 0 means vxlan.DefaultPort.
	Port uint16
	// HoldBytes is how much is queued for one held pod at most, as the kernel
	// counts (about 3.5 KB a full packet); 0 means vxlan.HoldQueueBytes.
	HoldBytes int
	// Linger is how long a device that is no longer wanted is kept before it
	// is deleted; 0 means one second.
	Linger time.Duration
	// AllowUnderlay lets pods reach the hosts' physical addresses and every
	// service of the proxy. Otherwise they reach the proxy at pod.Gateway
	// only, for DNS and ping, and no host.
	AllowUnderlay bool
}

func (c *Config) complete() error {
	if c.Port == 0 {
		c.Port = vxlan.DefaultPort
	}
	if c.HoldBytes == 0 {
		c.HoldBytes = vxlan.HoldQueueBytes
	}
	if c.Linger == 0 {
		c.Linger = time.Second
	}
	c.Physical = c.Physical.Unmap()
	c.PublicPrefix, c.VirtualPrefix = c.PublicPrefix.Masked(), c.VirtualPrefix.Masked()
	switch {
	case !c.Physical.Is4():
		return fmt.Errorf("%w: physical address %s is not IPv4", pod.ErrInvalid, c.Physical)
	case !c.PublicPrefix.Addr().Is4() || !c.VirtualPrefix.Addr().Is4():
		return fmt.Errorf("%w: prefixes %s and %s must be IPv4", pod.ErrInvalid, c.PublicPrefix, c.VirtualPrefix)
	case c.PublicPrefix.Bits() != c.VirtualPrefix.Bits():
		return fmt.Errorf("%w: prefixes %s and %s must be of one length", pod.ErrInvalid, c.PublicPrefix, c.VirtualPrefix)
	case c.PublicPrefix.Overlaps(c.VirtualPrefix):
		return fmt.Errorf("%w: prefixes %s and %s overlap", pod.ErrInvalid, c.PublicPrefix, c.VirtualPrefix)
	}
	return nil
}

// State is all the datapath is to do.
type State struct {
	// Hosts are the physical addresses that labelled packets may come from.
	Hosts []netip.Addr
	// Pods are the pods that can be reached.
	Pods []PodPath
}

// Change is what is other than in the State or Change before.
type Change struct {
	// Hosts are those of State, all of them.
	Hosts []netip.Addr
	// Pods are new, or their paths are different.
	Pods []PodPath
	// Gone are virtual addresses that can't be reached any more, but for those
	// that are in Pods, too.
	Gone []netip.Addr
}

// ErrStale says that the kernel may be other than remembered, so that a change
// can't be made but only all of a State.
var ErrStale = errors.New("the datapath has to be set as a whole")

// PodPath is the way to one pod.
type PodPath struct {
	// Binding is where the pod is.
	Binding pod.Binding
	// Next is where a move under way is going to put it: the device is made
	// early, and used once it is the Binding. May be nil.
	Next *pod.Binding
	// Held queues the pod's packets until it is false again or the binding
	// changes. There is no other bound in time.
	Held bool
}

// Datapath is the kernel state of one proxy. It is safe for concurrent use.
//
// Open, Set and Close must run on threads of the proxy's network namespace, as
// all threads of podproxy are; the others may run on any.
type Datapath struct {
	config Config
	log    *slog.Logger
	kernel *kernel

	// setting serializes Set. It is taken before mu.
	setting sync.Mutex

	// mu guards the model below. It is held for the steps of one pod at most,
	// so that a switch never waits for a long Set.
	mu      sync.Mutex
	paths   map[netip.Addr]*path
	devices map[pod.Label]*device
	// unclaimed devices were found by adopt and not asked for by a Set yet.
	unclaimed map[pod.Label]*device
	// held says since when pods are held.
	held  map[netip.Addr]time.Time
	hosts map[netip.Addr]bool
	// calls counts Hold, Release and Abort, sets counts Set.
	calls, sets uint64
	switches    uint64
	// stale means that the model may differ from the kernel.
	stale bool
	// known are the devices there were before a repair; nil at other times.
	known map[pod.Label]*device

	reaper *reaper
}

// path is the way to one pod as it is in the kernel.
type path struct {
	virtual netip.Addr
	// current is the device of the route, nil as long as there is no route;
	// next is the device of a move under way.
	current, next *device
	// settled is true when wanted is what the kernel has.
	settled bool
	wanted  wanted
	// call and set are the values of the counters at the last direct call and
	// at the last Set that concerned the pod.
	call, set uint64
}

// wanted is a PodPath that can be compared. A next of label 0 is none.
type wanted struct {
	binding, next pod.Binding
	held          bool
}

// Open prepares the kernel (parameters, rules, the gateway address) and adopts
// the devices and routes that an earlier proxy has left. It changes no pod's
// path; the first Set does, and removes what is not wanted.
func Open(config Config, log *slog.Logger) (*Datapath, error) {
	if err := config.complete(); err != nil {
		return nil, fmt.Errorf("opening datapath: %w", err)
	}
	k, err := dialKernel(config)
	if err != nil {
		return nil, fmt.Errorf("opening datapath: %w", err)
	}
	d := &Datapath{config: config, log: log, kernel: k, reaper: newReaper()}
	if err := d.synchronize(); err != nil {
		return nil, errors.Join(fmt.Errorf("opening datapath: %w", err), k.close())
	}
	d.reaper.start(d)
	log.Info("datapath adopted", "pods", len(d.paths), "devices", len(d.devices), "hosts", len(d.hosts))
	return d, nil
}

// Close stops the datapath and leaves the kernel as it is: connections go on.
func (d *Datapath) Close() error {
	d.reaper.stop()
	return d.kernel.close()
}

// Resync makes the next Set compare with the kernel and not with what the
// datapath remembers, to repair what others have changed. A Set that fails
// does so by itself.
func (d *Datapath) Resync() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stale = true
}

// Set brings the kernel to state. It changes only what differs, and one pod's
// failure does not keep it from the others. Devices no longer wanted are
// deleted later.
//
// Hold, Release or Abort for a pod while Set runs is taken to be news that
// state does not have, and wins.
func (d *Datapath) Set(ctx context.Context, state State) error {
	return d.set(ctx, state.Hosts, state.Pods, d.synchronize, d.removeUnwanted)
}

// Update makes a change of what the last Set and the Updates since have made of
// the kernel, which takes as long as the change is big, whatever the number of
// pods. All else is as with Set. The error wraps ErrStale when nothing is done
// and a Set is needed, as it is after any error.
func (d *Datapath) Update(ctx context.Context, change Change) error {
	return d.set(ctx, change.Hosts, change.Pods,
		func() error { return ErrStale },
		func(began uint64) error { return d.removeGone(change.Gone, began) })
}

// set sets paths and then removes others. renew is asked for when what is known
// of the kernel is stale; its error is the end.
func (d *Datapath) set(ctx context.Context, hosts []netip.Addr, pods []PodPath, renew func() error, remove func(began uint64) error) error {
	d.setting.Lock()
	defer d.setting.Unlock()

	d.mu.Lock()
	began, stale := d.calls, d.stale
	d.sets++
	d.mu.Unlock()
	if stale {
		if err := renew(); err != nil {
			return fmt.Errorf("setting datapath: %w", err)
		}
	}
	err := d.setPaths(ctx, hosts, pods, began)
	if ctx.Err() == nil {
		err = errors.Join(err, remove(began))
	}
	if err != nil {
		d.Resync()
	}
	return err
}

// setPaths sets the hosts and the paths to some pods.
func (d *Datapath) setPaths(ctx context.Context, hosts []netip.Addr, pods []PodPath, began uint64) error {
	failures := []error{d.setHosts(hosts)}
	for i := range pods {
		if err := ctx.Err(); err != nil {
			failures = append(failures, fmt.Errorf("setting datapath: %w", err))
			break
		}
		if err := d.setPod(&pods[i], began); err != nil {
			failures = append(failures, fmt.Errorf("setting path to pod %s: %w", pods[i].Binding.Virtual, err))
		}
	}
	return errors.Join(failures...)
}

func (d *Datapath) setPod(want *PodPath, began uint64) error {
	if err := d.validate(want.Binding); err != nil {
		return err
	}
	w := wanted{binding: want.Binding, held: want.Held}
	if want.Next != nil && want.Next.Label != want.Binding.Label {
		if err := d.validate(*want.Next); err != nil {
			return err
		}
		w.next = *want.Next
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.paths[w.binding.Virtual]
	if p == nil {
		p = &path{virtual: w.binding.Virtual}
		d.paths[p.virtual] = p
	}
	if p.set == d.sets {
		return fmt.Errorf("%w: the state names it twice", pod.ErrInvalid)
	}
	p.set = d.sets
	if p.call > began || p.settled && p.wanted == w {
		return nil
	}
	return d.apply(p, w)
}

func (d *Datapath) validate(b pod.Binding) error {
	if !d.config.VirtualPrefix.Contains(b.Virtual) || !b.Physical.Is4() || b.Label < pod.MinLabel || b.Label > pod.MaxLabel {
		return fmt.Errorf("%w: virtual address %s of %s, physical address %s, label %s",
			pod.ErrInvalid, b.Virtual, d.config.VirtualPrefix, b.Physical, b.Label)
	}
	return nil
}

// removeUnwanted removes the pods the running Set has not named, and what
// adopt has found and nobody has claimed.
func (d *Datapath) removeUnwanted(began uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var failures []error
	for _, p := range d.paths {
		failures = append(failures, d.removeUnnamed(p, began))
	}
	for label, dev := range d.unclaimed {
		if d.known != nil && d.known[label] == nil {
			d.kernel.changed("device", "%s was added", deviceName(label))
		}
		failures = append(failures, d.doom(dev))
	}
	return errors.Join(failures...)
}

// removeGone removes some pods, unless the running Update has named them.
func (d *Datapath) removeGone(gone []netip.Addr, began uint64) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	var failures []error
	for _, virtual := range gone {
		if p := d.paths[virtual]; p != nil {
			failures = append(failures, d.removeUnnamed(p, began))
		}
	}
	return errors.Join(failures...)
}

// removeUnnamed removes a pod that the running Set or Update has not named.
func (d *Datapath) removeUnnamed(p *path, began uint64) error {
	if p.set == d.sets || p.call > began {
		return nil
	}
	if err := d.removePath(p); err != nil {
		return fmt.Errorf("removing path to pod %s: %w", p.virtual, err)
	}
	return nil
}
