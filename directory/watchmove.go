package directory

import (
	"context"
	"errors"
	"log/slog"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"podd/pod"
)

// WatchMove delivers a move's journal entry as it is, and again whenever it has
// changed, at once. It survives what Watch survives; a reader that is slow
// misses what was in between and never the last. The channel is closed when ctx
// ends or there is no such move (any more).
func (d *Directory) WatchMove(ctx context.Context, id string) <-chan *pod.Move {
	return watch(ctx, d, slog.LevelDebug, "move "+id, func(ctx context.Context, publish func(*pod.Move)) error {
		return d.followMove(ctx, id, publish)
	})
}

// followMove reads the entry once and then takes events until something fails.
func (d *Directory) followMove(ctx context.Context, id string, publish func(*pod.Move)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	key := movePrefix + id
	resp, err := d.get(ctx, "reading move "+id, key)
	if err != nil {
		return err
	}
	m, err := decodeMove(id, first(resp))
	if err != nil {
		return err
	}
	publish(m)
	events := d.etcd.Watch(clientv3.WithRequireLeader(ctx), key, clientv3.WithRev(resp.Header.Revision+1))
	for resp := range events {
		if err := resp.Err(); err != nil {
			return err
		}
		for _, e := range resp.Events {
			if e.Type == mvccpb.DELETE {
				e.Kv = nil
			}
			if m, err = decodeMove(id, e.Kv); err != nil {
				return err
			}
			publish(m)
		}
	}
	return errors.New("the watch ended")
}
