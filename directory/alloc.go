package directory

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"podd/pod"
)

// allocator is the record that hands out labels and addresses. Every
// allocation changes it by compare-and-swap, so all of them are in one order
// and none is made twice.
type allocator struct {
	// Labels is how many labels were ever given out. It never goes back, so a
	// label comes again only after all 16 million others.
	Labels uint64 `json:"labels"`
	// Offset is that of the last address given out. The next search starts
	// behind it, so a freed address rests for as long as possible.
	Offset uint32 `json:"offset"`
	// Moves is the turn of the last move. Every move that begins changes it,
	// so that no two take the last place of a host.
	Moves uint64 `json:"moves,omitempty"`
}

// labelCount is how many labels there are.
const labelCount = uint64(pod.MaxLabel - pod.MinLabel + 1)

// lockAllocator keeps this process's allocations apart.
func (d *Directory) lockAllocator(ctx context.Context) (unlock func(), err error) {
	select {
	case d.allocating <- struct{}{}:
		return func() { <-d.allocating }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func decodeAllocator(kv *mvccpb.KeyValue) (*allocator, error) {
	if kv == nil {
		return &allocator{}, nil
	}
	return decode[allocator](kv)
}

// label takes the next label. Once all have been used it skips those that some
// pod or unfinished move still has. That list can't go stale before the
// transaction that stores a: a label becomes live only by changing the allocator.
func (d *Directory) label(ctx context.Context, a *allocator) (pod.Label, error) {
	var live map[pod.Label]bool
	if a.Labels >= labelCount {
		var err error
		if live, err = d.liveLabels(ctx); err != nil {
			return 0, err
		}
	}
	for range labelCount {
		l := pod.MinLabel + pod.Label(a.Labels%labelCount)
		a.Labels++
		if !live[l] {
			return l, nil
		}
	}
	return 0, fmt.Errorf("%w: all %d labels are in use", pod.ErrExhausted, labelCount)
}

func (d *Directory) liveLabels(ctx context.Context) (map[pod.Label]bool, error) {
	v, err := d.View(ctx)
	if err != nil {
		return nil, err
	}
	live := make(map[pod.Label]bool, len(v.Pods))
	for _, p := range v.Pods {
		live[p.Binding.Label] = true
	}
	for _, m := range v.Moves {
		if !finished(m) {
			live[m.Next.Label] = true
		}
	}
	return live, nil
}

// offset takes the next free address offset behind the last one given.
func (d *Directory) offset(ctx context.Context, c *Cluster, a *allocator) (uint32, error) {
	for _, span := range [][2]uint32{{a.Offset + 1, c.size()}, {0, min(a.Offset+1, c.size())}} {
		free, ok, err := d.firstFree(ctx, c, span[0], span[1])
		if err != nil {
			return 0, err
		}
		if ok {
			a.Offset = free
			return free, nil
		}
	}
	return 0, fmt.Errorf("%w: every address of %s has a pod", pod.ErrExhausted, c.Virtual)
}

// firstFree finds the lowest usable offset in [from, to) that no pod has.
func (d *Directory) firstFree(ctx context.Context, c *Cluster, from, to uint32) (uint32, bool, error) {
	const page = 256
	for next := from; next < to; {
		end := min(next+page, to)
		resp, err := d.etcd.Get(ctx, fmt.Sprintf(addressKeyForm, next),
			clientv3.WithRange(fmt.Sprintf(addressKeyForm, end)), clientv3.WithKeysOnly())
		if err != nil {
			return 0, false, err
		}
		taken := make(map[string]bool, len(resp.Kvs))
		for _, kv := range resp.Kvs {
			taken[string(kv.Key)] = true
		}
		for ; next < end; next++ {
			if c.usable(next) && !taken[fmt.Sprintf(addressKeyForm, next)] {
				return next, true, nil
			}
		}
	}
	return 0, false, nil
}
