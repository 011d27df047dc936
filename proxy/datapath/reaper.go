package datapath

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"podd/pod"
)

const (
	// reapBatch is how many devices are deleted by one message. Meanwhile the
	// kernel makes other changes wait, for 4 ms at most with 16 devices (as
	// with one) and 16 ms with 100.
	reapBatch = 16
	// reapPatience is how long deleting waits for pods that are held, whose
	// release should not have to wait for it.
	reapPatience = 10 * time.Second
)

// reaper deletes devices that are no longer wanted, after a while and out of
// the way. All fields but the goroutine's own are guarded by Datapath.mu.
type reaper struct {
	// doomed says when a device is to be deleted.
	doomed map[*device]time.Time
	// deleting are the labels the kernel is deleting right now.
	deleting map[pod.Label]bool
	wake     chan struct{}
	cancel   context.CancelFunc
	done     sync.WaitGroup
}

func newReaper() *reaper {
	return &reaper{doomed: map[*device]time.Time{}, deleting: map[pod.Label]bool{}, wake: make(chan struct{}, 1)}
}

func (r *reaper) start(d *Datapath) {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	r.done.Go(func() { r.run(ctx, d) })
}

func (r *reaper) stop() {
	r.cancel()
	r.done.Wait()
}

// add dooms a device.
func (r *reaper) add(dev *device, linger time.Duration) {
	if _, known := r.doomed[dev]; known {
		return
	}
	r.doomed[dev] = time.Now().Add(linger)
	r.poke()
}

// poke makes the goroutine look again.
func (r *reaper) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// spare takes a device back that is wanted after all.
func (r *reaper) spare(dev *device) { delete(r.doomed, dev) }

// forget takes all devices back, for a model that is read anew.
func (r *reaper) forget() { clear(r.doomed) }

// run deletes until ctx is done.
func (r *reaper) run(ctx context.Context, d *Datapath) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-timer.C:
		}
		for ctx.Err() == nil && r.reap(d) {
		}
		if wait, any := r.next(d); any {
			timer.Reset(wait)
		}
	}
}

// next returns how long it is until the first device is due.
func (r *reaper) next(d *Datapath) (wait time.Duration, any bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(r.doomed) == 0 {
		return 0, false
	}
	first := slices.MinFunc(slices.Collect(maps.Values(r.doomed)), time.Time.Compare)
	return max(time.Until(first.Add(r.delay(d))), 0), true
}

// delay is how much longer than planned devices are kept now.
func (r *reaper) delay(d *Datapath) time.Duration {
	if len(d.held) > 0 {
		return reapPatience
	}
	return 0
}

// reap deletes one batch of the devices that are due, and reports whether
// there was one. A batch that can't be deleted is tried again later.
func (r *reaper) reap(d *Datapath) bool {
	d.mu.Lock()
	now := time.Now().Add(-r.delay(d))
	var batch []*device
	for dev, due := range r.doomed {
		if len(batch) < reapBatch && !due.After(now) {
			batch = append(batch, dev)
			delete(r.doomed, dev)
			delete(d.devices, dev.label)
			r.deleting[dev.label] = true
		}
	}
	d.mu.Unlock()
	if len(batch) == 0 {
		return false
	}
	err := d.kernel.removeDevices(batch...)

	d.mu.Lock()
	defer d.mu.Unlock()
	for _, dev := range batch {
		delete(r.deleting, dev.label)
		if err != nil {
			d.devices[dev.label] = dev
			r.doomed[dev] = time.Now().Add(d.config.Linger)
		}
	}
	if err != nil {
		d.log.Warn("deleting superseded devices; trying again", "error", err)
	}
	return err == nil
}
