package directory

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"podd/trust"
	"podd/trust/trusttest"
)

// An embedded directory ends at once, also while its clients make new streams
// all the time, as they do when theirs were just ended.
func TestCloseEmbedded(t *testing.T) {
	issuer := trusttest.Cluster(t)
	member := trusttest.Member(t, issuer, trust.Identity{Kind: trust.KindHost, Name: "a"}, 0)
	for range 8 {
		e := startSecure(t, issuer)
		ctx, cancel := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		var ready sync.WaitGroup
		for range 4 {
			d, err := Open(ctx, Options{Endpoints: []string{e.Endpoint()}, TLS: member.DirectoryTLS(), Log: slog.New(slog.DiscardHandler)})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.Close() })
			for range 8 {
				ready.Add(1)
				clients.Go(func() {
					seen := sync.OnceFunc(ready.Done)
					for ctx.Err() == nil {
						stream, err := etcdserverpb.NewWatchClient(d.etcd.ActiveConnection()).Watch(ctx)
						seen()
						if err == nil {
							_, err = stream.Recv()
						}
						if err == nil {
							t.Error("an answer without a question")
						}
					}
				})
			}
		}
		ready.Wait()
		closed := make(chan error, 1)
		go func() { closed <- e.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(30 * time.Second):
			t.Error("the directory does not end")
		}
		cancel()
		clients.Wait()
	}
}
