package directory

import (
	"context"
	"errors"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// watchPause is the pause before a watch that was interrupted begins again.
const watchPause = 100 * time.Millisecond

// Watch delivers the directory as it is, and again whenever it has changed, at
// once: there is no delay to collect changes. A reader that is slow misses views
// in between and never the last. A view never shows half of a transaction. The
// watch survives restarts of etcd and compaction; the channel is closed when ctx
// ends.
func (d *Directory) Watch(ctx context.Context) <-chan *View {
	views := make(chan *View, 1)
	go func() {
		defer close(views)
		publish := func(v *View) {
			select {
			case <-views: // not read yet: superseded
			default:
			}
			views <- v // room for sure: nobody else sends
		}
		for ctx.Err() == nil {
			err := d.follow(ctx, publish)
			if ctx.Err() != nil {
				return
			}
			if errors.Is(err, rpctypes.ErrCompacted) {
				d.log.Debug("the watch fell behind compaction; listing again")
				continue
			}
			d.log.Warn("watching the directory was interrupted", "error", d.explain(ctx, "watching", err))
			select {
			case <-ctx.Done():
			case <-time.After(watchPause):
			}
		}
	}()
	return views
}

// follow lists once and then applies events until something fails.
func (d *Directory) follow(ctx context.Context, publish func(*View)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	listing, cancelList := context.WithTimeout(ctx, d.timeout)
	defer cancelList()
	s, err := d.list(listing, root)
	if err != nil {
		return err
	}
	publish(s.view())
	// Without a leader there is no news; better to fail and say so.
	events := d.etcd.Watch(clientv3.WithRequireLeader(ctx), root, clientv3.WithPrefix(), clientv3.WithRev(s.revision+1))
	for resp := range events {
		if err := resp.Err(); err != nil {
			return err
		}
		if len(resp.Events) == 0 {
			continue
		}
		// All events of a transaction are in one response.
		for _, e := range resp.Events {
			s.apply(e)
		}
		s.revision = resp.Events[len(resp.Events)-1].Kv.ModRevision
		publish(s.view())
	}
	return errors.New("the watch ended")
}
