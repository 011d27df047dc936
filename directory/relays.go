package directory

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"podd/pod"
)

const relayPrefix = root + "relays/"

// Relay is a host's request for one connection to another through the proxy,
// where each goes to meet the other.
type Relay struct {
	ID string `json:"id"`
	// From and To are the hosts; From asks, and speaks first.
	From string `json:"from"`
	To   string `json:"to"`
	// Proxy is where they are to meet.
	Proxy string `json:"proxy"`
	// Move is what the connection is for. Without one it may carry a few
	// questions before a move, and no more.
	Move string `json:"move,omitempty"`
}

// AskRelay stores a request. It goes by itself some time after ttl.
func (d *Directory) AskRelay(ctx context.Context, r Relay, ttl time.Duration) error {
	return d.retry(ctx, "asking for a connection to host "+r.To+" through the proxy", func(ctx context.Context) error {
		lease, err := d.leaseUntil(ctx, time.Now().Add(ttl))
		if err != nil {
			return err
		}
		return d.write(ctx, nil, put(relayPrefix+r.ID, r, clientv3.WithLease(lease)))
	})
}

// EndRelay takes a request back. A connection made by it goes on.
func (d *Directory) EndRelay(ctx context.Context, id string) error {
	return d.retry(ctx, "taking back request "+id+" for a relay", func(ctx context.Context) error {
		_, err := d.etcd.Delete(ctx, relayPrefix+id)
		return err
	})
}

// Relay reads one request. The error wraps pod.ErrNotFound.
func (d *Directory) Relay(ctx context.Context, id string) (*Relay, error) {
	resp, err := d.get(ctx, "reading request "+id+" for a relay", relayPrefix+id)
	if err != nil {
		return nil, err
	}
	if len(resp.Kvs) == 0 {
		return nil, fmt.Errorf("request %q for a relay: %w", id, pod.ErrNotFound)
	}
	return decode[Relay](resp.Kvs[0])
}

// WatchRelays delivers the requests for connections to a host, all that there
// are, and again whenever there are others. The channel is closed when ctx ends;
// interruptions are survived.
func (d *Directory) WatchRelays(ctx context.Context, to string) <-chan []Relay {
	return watch(ctx, d, slog.LevelDebug, "requests for relays", func(ctx context.Context, publish func([]Relay)) error {
		return d.followRelays(ctx, to, publish)
	})
}

func (d *Directory) followRelays(ctx context.Context, to string, publish func([]Relay)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	resp, err := d.get(ctx, "reading the requests for relays", relayPrefix, clientv3.WithPrefix())
	if err != nil {
		return err
	}
	open := map[string]Relay{}
	apply := func(kv *mvccpb.KeyValue, gone bool) (news bool) {
		id := strings.TrimPrefix(string(kv.Key), relayPrefix)
		if gone {
			_, known := open[id]
			delete(open, id)
			return known
		}
		r, err := decode[Relay](kv)
		if err != nil {
			d.log.Warn("a request for a relay is not understood", "request", id, "error", err)
			return false
		}
		if r.ID != id || r.To != to {
			return false
		}
		open[id] = *r
		return true
	}
	tell := func() { publish(sorted(open)) }
	for _, kv := range resp.Kvs {
		apply(kv, false)
	}
	tell()
	events := d.etcd.Watch(clientv3.WithRequireLeader(ctx), relayPrefix, clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1))
	for resp := range events {
		if err := resp.Err(); err != nil {
			return err
		}
		news := false
		for _, e := range resp.Events {
			news = apply(e.Kv, e.Type == mvccpb.DELETE) || news
		}
		if news {
			tell()
		}
	}
	return errors.New("the watch ended")
}
