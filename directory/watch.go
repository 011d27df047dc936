package directory

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"podd/pod"
)

// watchPause is the pause before a watch that was interrupted begins again.
const watchPause = 100 * time.Millisecond

// Watch delivers the directory as it is, and again whenever it has changed, at
// once: there is no delay to collect changes. A reader that is slow misses views
// in between and never the last. A view never shows half of a transaction. The
// watch survives restarts of etcd and compaction; the channel is closed when ctx
// ends.
func (d *Directory) Watch(ctx context.Context) <-chan *View {
	return watch(ctx, d, slog.LevelWarn, "the directory", d.follow)
}

// watch delivers what follow publishes, the newest only when the reader is
// slow, and starts follow anew when it fails. The channel is closed when ctx
// ends or what is followed is gone (pod.ErrNotFound). Interruptions are logged
// at level.
func watch[T any](ctx context.Context, d *Directory, level slog.Level, what string, follow func(context.Context, func(T)) error) <-chan T {
	news := make(chan T, 1)
	publish := func(v T) {
		select {
		case <-news: // not read yet: superseded
		default:
		}
		news <- v // room for sure: nobody else sends
	}
	go func() {
		defer close(news)
		for ctx.Err() == nil {
			err := follow(ctx, publish)
			if ctx.Err() != nil || errors.Is(err, pod.ErrNotFound) {
				return
			}
			if errors.Is(err, rpctypes.ErrCompacted) {
				d.log.Debug("the watch fell behind compaction; reading again", "watched", what)
				continue
			}
			d.log.Log(ctx, level, "watching "+what+" was interrupted", "error", d.explain(ctx, "watching", err))
			select {
			case <-ctx.Done():
			case <-time.After(watchPause):
			}
		}
	}()
	return news
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
		s.received = time.Now()
		// All events of a transaction are in one response.
		for _, e := range resp.Events {
			s.apply(e)
		}
		s.revision = resp.Events[len(resp.Events)-1].Kv.ModRevision
		publish(s.view())
	}
	return errors.New("the watch ended")
}
